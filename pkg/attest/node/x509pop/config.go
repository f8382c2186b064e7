package x509pop

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Values of the key mode.
const (
	modePKI    = "external_pki"
	modeSPIFFE = "spiffe"
)

const (
	defaultMaxIntermediates = 4
	defaultMaxRSAKeySize    = 8192
	defaultSVIDPrefix       = "/spire-exchange"
)

// PathValue is the value of an agent path template that is a path by itself.
const PathValue = "SVIDPathTrimmed"

// VerifierConfig is plugin_data of the server, and what the server gives the
// verifier beside it.
//
//credence:plugin_data server NodeAttestor x509pop
type VerifierConfig struct {
	// Mode says whose certificates are accepted: external_pki (of the
	// authorities in ca_bundle_path) or spiffe (X509-SVIDs of the trust domain
	// itself).
	Mode string `hcl:"mode" unset:"external_pki"`
	// SVIDPrefix is the path below which an X509-SVID can be exchanged for an
	// agent's, in the mode spiffe. Empty: any path but those of servers and
	// agents.
	SVIDPrefix *string `hcl:"svid_prefix" unset:"/spire-exchange"`
	// SPIFFEPrefix is the name under which SPIRE 1.15 reads svid_prefix.
	SPIFFEPrefix *string `hcl:"spiffe_prefix" unset:"as svid_prefix"`
	// CABundlePath is a PEM file with the trusted authorities; it or
	// ca_bundle_paths is required in the mode external_pki.
	CABundlePath string `hcl:"ca_bundle_path"`
	// CABundlePaths are several such files.
	CABundlePaths []string `hcl:"ca_bundle_paths"`
	// AgentPathTemplate makes the path of an agent's SPIFFE ID below
	// /spire/agent, and has to begin with /x509pop/. In the mode spiffe the
	// last part is {{ .SVIDPathTrimmed }} when it is not set.
	AgentPathTemplate string `hcl:"agent_path_template" unset:"/{{ .PluginName }}/{{ .Fingerprint }}"`
	// MaxIntermediates is how many certificates may stand between the node's
	// and a trusted one.
	MaxIntermediates *int `hcl:"max_intermediates" unset:"4"`
	// MaxRSAKeySize is how long an RSA key may be, in bits.
	MaxRSAKeySize *int `hcl:"max_rsa_key_size" unset:"8192"`
	// VerifyClientIP refuses an agent whose IP address is not in its
	// certificate.
	VerifyClientIP bool `hcl:"verify_client_ip"`

	// Path makes the path of AgentPathTemplate; required if that is set.
	Path func(values any) (string, error)
	// TrustBundle is the X.509 authorities of the trust domain at the moment;
	// required in the mode spiffe. The caller does not change them.
	TrustBundle func() []*x509.Certificate
}

// Validate reports every problem with its key. It touches no file.
func (c *VerifierConfig) Validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	files := len(c.CABundlePaths)
	if c.CABundlePath != "" {
		files++
	}
	switch cmp.Or(c.Mode, modePKI) {
	case modePKI:
		if files == 0 {
			bad("ca_bundle_path: it or ca_bundle_paths is required: name the PEM file of the authorities that sign the nodes' certificates")
		}
	case modeSPIFFE:
		if files > 0 {
			bad("ca_bundle_path: neither it nor ca_bundle_paths can be used in the mode spiffe, where the trust domain's own bundle is used; remove it")
		}
	default:
		bad("mode: %q is not known; use external_pki or spiffe", c.Mode)
	}
	if c.CABundlePath != "" && len(c.CABundlePaths) > 0 {
		bad("ca_bundle_paths: is exclusive with ca_bundle_path; keep one")
	}
	if c.SVIDPrefix != nil && c.SPIFFEPrefix != nil && *c.SVIDPrefix != *c.SPIFFEPrefix {
		bad("spiffe_prefix: says the same as svid_prefix and has another value; keep svid_prefix")
	}
	if p := strings.TrimSuffix(c.prefix(), "/"); p != "" {
		if err := spiffeid.ValidatePath(p); err != nil {
			bad("svid_prefix: %w", err)
		}
	}
	if n := c.MaxIntermediates; n != nil && *n < 1 {
		bad("max_intermediates: %d is less than 1", *n)
	}
	if n := c.MaxRSAKeySize; n != nil && *n < 1 {
		bad("max_rsa_key_size: %d is less than 1", *n)
	}
	return errors.Join(problems...)
}

// prefix is the path below which SVIDs can be exchanged, with a slash at its
// end.
func (c *VerifierConfig) prefix() string {
	p := defaultSVIDPrefix
	switch {
	case c.SVIDPrefix != nil:
		p = *c.SVIDPrefix
	case c.SPIFFEPrefix != nil:
		p = *c.SPIFFEPrefix
	}
	return strings.TrimSuffix(p, "/") + "/"
}

func orDefault(n *int, otherwise int) int {
	if n == nil {
		return otherwise
	}
	return *n
}
