package x509pop

import (
	"crypto/sha1" //nolint:gosec // the fingerprint in SPIRE's agent IDs and selectors, where collisions are of no use: only genuine certificates get here
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// values is what an agent path template finds.
type values struct {
	*x509.Certificate

	PluginName      string
	TrustDomain     string
	Fingerprint     string
	SerialNumberHex string
	SVIDPathTrimmed string
	URISanSelectors map[string]string
}

// NoValues is what an agent path template finds, with nothing in it: to see
// whether it names fields that there are.
func NoValues() any { return values{Certificate: new(x509.Certificate)} }

// exchanged is what an X509-SVID has below the prefix; nothing outside the mode
// spiffe.
func (v *Verifier) exchanged(leaf *x509.Certificate, td spiffeid.TrustDomain) (string, error) {
	if v.config.Mode != modeSPIFFE {
		return "", nil
	}
	refuse := func(why string) (string, error) {
		return "", fmt.Errorf("%w: the certificate cannot be exchanged: %s", node.ErrRefused, why)
	}
	id, err := x509svid.IDFromCert(leaf)
	switch {
	case err != nil:
		return refuse("it is no X509-SVID")
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return refuse("it is an authority's") // X509-SVID, section 4
	case !id.MemberOf(td):
		return refuse("it is of another trust domain")
	case strings.HasPrefix(id.Path(), "/spire/"):
		return refuse("it is a server's or an agent's")
	}
	rest, below := strings.CutPrefix(id.Path(), v.config.prefix())
	if !below {
		return refuse("its path is not below svid_prefix")
	}
	return rest, nil
}

// identify says who the agent with the certificate is.
func (v *Verifier) identify(td spiffeid.TrustDomain, leaf *x509.Certificate, chains [][]*x509.Certificate, svidPath string) (node.Result, error) {
	sans := sanSelectors(leaf, td)
	selectors := selectors(leaf, chains, sans)
	if err := selectors.Validate(); err != nil {
		return node.Result{}, fmt.Errorf("%w: the certificate gives no good selectors: %w", node.ErrRefused, err)
	}
	path := "/" + Name + "/" + fingerprint(leaf)
	if v.config.Mode == modeSPIFFE {
		path = "/" + Name + "/" + svidPath
	}
	if v.config.AgentPathTemplate != "" {
		var err error
		if path, err = v.config.Path(values{
			Certificate: leaf, PluginName: Name, TrustDomain: td.Name(),
			Fingerprint: fingerprint(leaf), SerialNumberHex: serialNumber(leaf.SerialNumber),
			SVIDPathTrimmed: svidPath, URISanSelectors: sans,
		}); err != nil {
			return node.Result{}, err
		}
	}
	if !strings.HasPrefix(path, "/"+Name+"/") {
		return node.Result{}, fmt.Errorf("the agent's path %q is not below /%s/", path, Name)
	}
	id, err := spiffeid.FromPath(td, "/spire/agent"+path)
	if err != nil {
		return node.Result{}, fmt.Errorf("%w: the certificate gives no good agent ID: %w", node.ErrRefused, err)
	}
	return node.Result{AgentID: id, Selectors: selectors, CanReattest: true}, nil
}

// selectors are SPIRE's: of the leaf, and of every other certificate of every
// chain.
func selectors(leaf *x509.Certificate, chains [][]*x509.Certificate, sans map[string]string) attest.Selectors {
	var out []attest.Selector
	add := func(value string) { out = append(out, attest.Selector{Type: Name, Value: value}) }
	if cn := leaf.Subject.CommonName; cn != "" {
		add("subject:cn:" + cn)
	}
	for _, chain := range chains {
		for _, c := range chain[1:] {
			add("ca:fingerprint:" + fingerprint(c))
		}
	}
	add("serialnumber:" + serialNumber(leaf.SerialNumber))
	for key, value := range sans {
		add("san:" + key + ":" + value)
	}
	return attest.NewSelectors(out...)
}

// sanSelectors are the pairs in URI SANs x509pop://<trust domain>/<key>/<value>;
// of two with one key the last counts, as in SPIRE.
func sanSelectors(leaf *x509.Certificate, td spiffeid.TrustDomain) map[string]string {
	out := make(map[string]string)
	for _, uri := range leaf.URIs {
		if !strings.HasPrefix(uri.String(), Name+"://"+td.Name()+"/") {
			continue
		}
		if key, value, ok := strings.Cut(strings.Trim(uri.Path, "/"), "/"); ok {
			out[key] = value
		}
	}
	return out
}

func fingerprint(c *x509.Certificate) string {
	sum := sha1.Sum(c.Raw) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}

// serialNumber is lower-case hexadecimal of whole bytes.
func serialNumber(n *big.Int) string {
	text := n.Text(16)
	if len(text)%2 == 1 {
		text = "0" + text
	}
	return text
}
