package x509pop

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/agentpath"
	"github.com/credence-id/credence/pkg/attest/node/nodetest"
	"github.com/google/go-cmp/cmp"
)

func ptr[T any](v T) *T { return &v }

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sel(values ...string) attest.Selectors {
	var out []attest.Selector
	for _, v := range values {
		out = append(out, attest.Selector{Type: Name, Value: v})
	}
	return attest.NewSelectors(out...)
}

// TestConformance runs the suite of node attestors for each kind of key.
func TestConformance(t *testing.T) {
	root := newAuthority(t, "root", nil)
	inter := newAuthority(t, "intermediate", root)
	for name, key := range map[string]crypto.Signer{
		"P-256": newECDSA(t, elliptic.P256()), "P-384": newECDSA(t, elliptic.P384()), "P-521": newECDSA(t, elliptic.P521()),
		"RSA 2048": rsaKey(t, 2048),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, leaf("a-canary-name"), key, root, inter)
			config := m.files(t)
			nodetest.Run(t, nodetest.Pair{
				Verifier: newVerifier(t, VerifierConfig{}, root),
				Prover:   func(*testing.T) node.Prover { return NewProver(config) },
				Want: node.Result{CanReattest: true, Selectors: sel("subject:cn:a-canary-name", "serialnumber:0a1b2c",
					"ca:fingerprint:"+fingerprint(inter.cert), "ca:fingerprint:"+fingerprint(root.cert))},
				Hostile: hostile(t, root, inter),
			})
		})
	}
}

// TestSPIFFEMode says which certificates of the trust domain's own authorities
// can be exchanged, and for which agent.
func TestSPIFFEMode(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	key := newECDSA(t, elliptic.P256())
	for name, c := range map[string]struct {
		prefix *string
		id     []string
		want   string // "" is refused
	}{
		"default prefix":  {nil, []string{"spiffe://example.org/spire-exchange/host"}, "host"},
		"two segments":    {nil, []string{"spiffe://example.org/spire-exchange/dc/host"}, "dc/host"},
		"own prefix":      {ptr("/x/"), []string{"spiffe://example.org/x/host"}, "host"},
		"any path":        {ptr(""), []string{"spiffe://example.org/a/b"}, "a/b"},
		"other prefix":    {nil, []string{"spiffe://example.org/other/host"}, ""},
		"prefix in name":  {nil, []string{"spiffe://example.org/spire-exchange-not/host"}, ""},
		"prefix alone":    {nil, []string{"spiffe://example.org/spire-exchange"}, ""},
		"no path":         {ptr(""), []string{"spiffe://example.org"}, ""},
		"agent":           {ptr(""), []string{"spiffe://example.org/spire/agent/x509pop/a"}, ""},
		"server":          {ptr(""), []string{"spiffe://example.org/spire/server"}, ""},
		"other domain":    {nil, []string{"spiffe://other.test/spire-exchange/host"}, ""},
		"two SPIFFE IDs":  {nil, []string{"spiffe://example.org/spire-exchange/a", "spiffe://example.org/spire-exchange/b"}, ""},
		"two URIs":        {nil, []string{"spiffe://example.org/spire-exchange/a", "x509pop://example.org/k/v"}, ""},
		"no URI":          {nil, nil, ""},
		"escaped segment": {nil, []string{"spiffe://example.org/spire-exchange/%61"}, ""},
		"dots":            {nil, []string{"spiffe://example.org/spire-exchange/../spire/agent/x"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, VerifierConfig{Mode: modeSPIFFE, SVIDPrefix: c.prefix}, root)
			got, err := newMachine(t, leaf("", c.id...), key, root).attest(t, v)
			switch {
			case c.want == "" && !errors.Is(err, node.ErrRefused):
				t.Errorf("accepted as %s, error %v", got.AgentID, err)
			case c.want != "" && (err != nil || got.AgentID.String() != "spiffe://example.org/spire/agent/x509pop/"+c.want):
				t.Errorf("agent ID %s, error %v", got.AgentID, err)
			}
		})
	}
	t.Run("authority", func(t *testing.T) {
		t.Parallel()
		template := leaf("", "spiffe://example.org/spire-exchange/host")
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage |= x509.KeyUsageCertSign
		if _, err := newMachine(t, template, key, root).attest(t, newVerifier(t, VerifierConfig{Mode: modeSPIFFE}, root)); !errors.Is(err, node.ErrRefused) {
			t.Errorf("an authority's certificate: %v", err)
		}
	})
	t.Run("old name of the key", func(t *testing.T) {
		t.Parallel()
		v := newVerifier(t, VerifierConfig{Mode: modeSPIFFE, SPIFFEPrefix: ptr("/x")}, root)
		got, err := newMachine(t, leaf("", "spiffe://example.org/x/y"), key, root).attest(t, v)
		if err != nil || got.AgentID.Path() != "/spire/agent/x509pop/y" {
			t.Errorf("agent ID %s, error %v", got.AgentID, err)
		}
	})
}

// TestSPIFFEExchange is both halves in the mode spiffe. The suite does not fit: it
// attests to more than one trust domain, and an SVID is of one.
func TestSPIFFEExchange(t *testing.T) {
	root := newAuthority(t, "root", nil)
	m := newMachine(t, leaf("", "spiffe://example.org/spire-exchange/host"), newECDSA(t, elliptic.P256()), root)
	v := newVerifier(t, VerifierConfig{Mode: modeSPIFFE}, root)
	result, err := nodetest.Exchange(t.Context(), NewProver(m.files(t)), v, td, nil)
	want := node.Result{AgentID: result.AgentID, CanReattest: true, Selectors: sel("serialnumber:0a1b2c", "ca:fingerprint:"+fingerprint(root.cert))}
	if err != nil || result.AgentID.Path() != "/spire/agent/x509pop/host" || !result.Selectors.Equal(want.Selectors) || !result.CanReattest {
		t.Errorf("%+v, error %v", result, err)
	}
}

// TestSelectors compares with what SPIRE's documentation says.
func TestSelectors(t *testing.T) {
	t.Parallel()
	root, other := newAuthority(t, "root", nil), newAuthority(t, "other root", nil)
	inter := newAuthority(t, "intermediate", root)
	// The same intermediate authority, certified by another root too.
	cross := &authority{key: inter.key, cert: other.issue(t, x509.Certificate{
		Subject: inter.cert.Subject, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, inter.key.Public(), nil)}
	key := newECDSA(t, elliptic.P256())
	for name, c := range map[string]struct {
		template x509.Certificate
		chain    []*authority
		want     []string
	}{
		"all": {
			leaf("host.example.org", "x509pop://example.org/datacenter/us-east-1", "x509pop://example.org/key/path/to/value", "https://example.org/x"),
			[]*authority{root},
			[]string{"subject:cn:host.example.org", "serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert), "san:datacenter:us-east-1", "san:key:path/to/value"},
		},
		"no name":        {leaf(""), []*authority{root}, []string{"serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert)}},
		"other's SAN":    {leaf("", "x509pop://other.test/k/v", "x509pop://example.org/k", "x509pop://example.org//"), []*authority{root}, []string{"serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert)}},
		"the last SAN":   {leaf("", "x509pop://example.org/k/1", "x509pop://example.org/k/2"), []*authority{root}, []string{"serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert), "san:k:2"}},
		"cross-signed":   {leaf(""), []*authority{root, cross, inter}, []string{"serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert), "ca:fingerprint:" + fingerprint(other.cert), "ca:fingerprint:" + fingerprint(inter.cert), "ca:fingerprint:" + fingerprint(cross.cert)}},
		"with its root":  {leaf(""), []*authority{nil, root}, []string{"serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert)}},
		"a stray one":    {leaf(""), []*authority{nil, newAuthority(t, "stray", nil), root}, []string{"serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert)}},
		"odd serial":     {x509.Certificate{SerialNumber: big.NewInt(0xabc), KeyUsage: x509.KeyUsageDigitalSignature}, []*authority{root}, []string{"serialnumber:0abc", "ca:fingerprint:" + fingerprint(root.cert)}},
		"large serial":   {x509.Certificate{SerialNumber: new(big.Int).Lsh(big.NewInt(1), 152), KeyUsage: x509.KeyUsageDigitalSignature}, []*authority{root}, []string{"serialnumber:01" + strings.Repeat("00", 19), "ca:fingerprint:" + fingerprint(root.cert)}},
		"colons in name": {leaf("a:b:c"), []*authority{root}, []string{"subject:cn:a:b:c", "serialnumber:0a1b2c", "ca:fingerprint:" + fingerprint(root.cert)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, c.template, key, c.chain...)
			got, err := m.attest(t, newVerifier(t, VerifierConfig{}, root, other))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sel(c.want...), got.Selectors); diff != "" {
				t.Errorf("selectors (-want +got):\n%s", diff)
			}
			if want := "spiffe://example.org/spire/agent/x509pop/" + fingerprint(m.chain[0]); got.AgentID.String() != want || !got.CanReattest {
				t.Errorf("agent ID %s, want %s", got.AgentID, want)
			}
		})
	}
}

// TestRefused are certificates of trusted authorities that are not good enough.
func TestRefused(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	key := newECDSA(t, elliptic.P256())
	past := leaf("past")
	past.NotBefore, past.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute)
	future := leaf("future")
	future.NotBefore, future.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	noUsage := leaf("no usage")
	noUsage.KeyUsage = x509.KeyUsageKeyEncipherment
	critical := leaf("critical")
	longName := leaf(strings.Repeat("n", attest.MaxSelectorValue))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	notCA := &authority{key: newECDSA(t, elliptic.P256())}
	notCA.cert = root.issue(t, leaf("not an authority"), notCA.key.Public(), nil)
	old := &authority{key: newECDSA(t, elliptic.P256())}
	old.cert = root.issue(t, x509.Certificate{Subject: leaf("old").Subject, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: past.NotBefore, NotAfter: past.NotAfter}, old.key.Public(), nil)
	for name, m := range map[string]machine{
		"expired":                     newMachine(t, past, key, root),
		"not yet valid":               newMachine(t, future, key, root),
		"no digitalSignature":         newMachine(t, noUsage, key, root),
		"Ed25519":                     newMachine(t, leaf("ed"), ed, root),
		"by no authority":             newMachine(t, leaf("x"), key, root, notCA),
		"by an expired authority":     newMachine(t, leaf("x"), key, root, old),
		"self-signed":                 newMachine(t, critical, key, newAuthority(t, "root", nil)),
		"intermediate left out":       {chain: newMachine(t, leaf("x"), key, root, newAuthority(t, "i", root)).chain[:1], key: key},
		"name too long for selectors": newMachine(t, longName, key, root),
		"key of another":              {chain: newMachine(t, leaf("x"), key, root).chain, key: newECDSA(t, elliptic.P256())},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := m.attest(t, newVerifier(t, VerifierConfig{}, root))
			if !errors.Is(err, node.ErrRefused) || !got.AgentID.IsZero() {
				t.Errorf("agent ID %q, error %v", got.AgentID, err)
			}
		})
	}
}

func TestVerifyClientIP(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	template := leaf("host")
	template.IPAddresses = []net.IP{ip(t, "192.0.2.7"), ip(t, "2001:db8::7")}
	m := newMachine(t, template, newECDSA(t, elliptic.P256()), root)
	for _, c := range []struct {
		on   bool
		from string
		ok   bool
	}{
		{true, "192.0.2.7", true},
		{true, "::ffff:192.0.2.7", true},
		{true, "2001:db8::7", true},
		{true, "192.0.2.8", false},
		{true, "", false},
		{false, "192.0.2.8", true},
		{false, "", true},
	} {
		var from netip.Addr
		if c.from != "" {
			from = netip.MustParseAddr(c.from)
		}
		v := newVerifier(t, VerifierConfig{VerifyClientIP: c.on}, root)
		_, err := v.Verify(t.Context(), node.Attempt{TrustDomain: td, PeerIP: from, Payload: payload(t, m.chain...), Challenge: m.answer(t)})
		if (err == nil) != c.ok {
			t.Errorf("from %q, verify_client_ip %v: %v", c.from, c.on, err)
		}
		if err != nil && c.from != "" && !errors.Is(err, node.ErrRefused) {
			t.Errorf("from %q: the error is not the agent's: %v", c.from, err)
		}
	}
}

// TestFilesAreReadAnew: what renews the certificate needs to tell nobody.
func TestFilesAreReadAnew(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	v := newVerifier(t, VerifierConfig{}, root)
	config := newMachine(t, leaf("first"), newECDSA(t, elliptic.P256()), root).files(t)
	prover := NewProver(config)
	before, err := nodetest.Exchange(t.Context(), prover, v, td, nil)
	if err != nil {
		t.Fatal(err)
	}
	second := newMachine(t, leaf("second"), rsaKey(t, 2048), root).files(t)
	for from, to := range map[string]string{second.CertificatePath: config.CertificatePath, second.PrivateKeyPath: config.PrivateKeyPath} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	after, err := nodetest.Exchange(t.Context(), prover, v, td, nil)
	if err != nil || !after.Selectors.Contains(sel("subject:cn:second")) || after.AgentID == before.AgentID {
		t.Errorf("after new files: %+v, error %v", after, err)
	}
	if err := config.CheckFiles(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(config.PrivateKeyPath); err != nil {
		t.Fatal(err)
	}
	if err := config.CheckFiles(); err == nil || !strings.Contains(err.Error(), config.PrivateKeyPath) {
		t.Errorf("checking without a key: %v", err)
	}
	_, err = nodetest.Exchange(t.Context(), prover, v, td, nil)
	if err == nil || !strings.Contains(err.Error(), config.PrivateKeyPath) || errors.Is(err, node.ErrRefused) {
		t.Errorf("without a key: %v", err)
	}
}

// TestIntermediatesPath: intermediates come from their own file too.
func TestIntermediatesPath(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	inter := newAuthority(t, "intermediate", root)
	m := newMachine(t, leaf("x"), newECDSA(t, elliptic.P256()), root, inter)
	all := m.files(t)
	m.chain = m.chain[:1]
	config := m.files(t)
	config.IntermediatesPath = all.CertificatePath
	if _, err := nodetest.Exchange(t.Context(), NewProver(config), newVerifier(t, VerifierConfig{}, root), td, nil); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config VerifierConfig
		want   string // "" is good
	}{
		"one file":         {VerifierConfig{CABundlePath: "ca.pem"}, ""},
		"files":            {VerifierConfig{Mode: "external_pki", CABundlePaths: []string{"a.pem", "b.pem"}}, ""},
		"spiffe":           {VerifierConfig{Mode: "spiffe", SVIDPrefix: ptr("/a/b/")}, ""},
		"empty prefix":     {VerifierConfig{Mode: "spiffe", SVIDPrefix: ptr("")}, ""},
		"nothing":          {VerifierConfig{}, "ca_bundle_path"},
		"both":             {VerifierConfig{CABundlePath: "a", CABundlePaths: []string{"b"}}, "ca_bundle_paths"},
		"spiffe and files": {VerifierConfig{Mode: "spiffe", CABundlePath: "a"}, "ca_bundle_path"},
		"mode":             {VerifierConfig{Mode: "spife", CABundlePath: "a"}, "mode"},
		"prefix":           {VerifierConfig{Mode: "spiffe", SVIDPrefix: ptr("a b")}, "svid_prefix"},
		"two prefixes":     {VerifierConfig{Mode: "spiffe", SVIDPrefix: ptr("/a"), SPIFFEPrefix: ptr("/b")}, "spiffe_prefix"},
		"intermediates":    {VerifierConfig{CABundlePath: "a", MaxIntermediates: ptr(0)}, "max_intermediates"},
		"RSA":              {VerifierConfig{CABundlePath: "a", MaxRSAKeySize: ptr(-1)}, "max_rsa_key_size"},
	} {
		err := c.config.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want+":")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		config ProverConfig
		ok     bool
	}{
		"files":            {ProverConfig{PrivateKeyPath: "k", CertificatePath: "c"}, true},
		"socket":           {ProverConfig{SPIFFEEndpointSocket: "unix:///run/a.sock"}, true},
		"nothing":          {ProverConfig{}, false},
		"no certificate":   {ProverConfig{PrivateKeyPath: "k"}, false},
		"socket and files": {ProverConfig{PrivateKeyPath: "k", CertificatePath: "c", SPIFFEEndpointSocket: "unix:///run/a.sock"}, false},
		"no URL":           {ProverConfig{SPIFFEEndpointSocket: "/run/a.sock"}, false},
	} {
		if err := c.config.Validate(); (err == nil) != c.ok {
			t.Errorf("agent, %s: %v", name, err)
		}
	}
}

// TestNewVerifier says which file is wrong.
func TestNewVerifier(t *testing.T) {
	t.Parallel()
	empty := t.TempDir() + "/empty.pem"
	writePEM(t, empty, "PRIVATE KEY", []byte("x"))
	bad := t.TempDir() + "/bad.pem"
	writePEM(t, bad, "CERTIFICATE", []byte("x"))
	for _, path := range []string{empty, bad, "/nonexistent.pem"} {
		_, err := NewVerifier(VerifierConfig{CABundlePath: path})
		if err == nil || !strings.Contains(err.Error(), path) || !strings.HasPrefix(err.Error(), "ca_bundle_path:") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := NewVerifier(VerifierConfig{CABundlePath: bad, AgentPathTemplate: "x"}); err == nil {
		t.Error("a template that nothing reads was accepted")
	}
}

// TestS20_TemplateValues: a value of the certificate is a part of one path
// segment as it stands, or the attestation is refused.
func TestS20_TemplateValues(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	key := newECDSA(t, elliptic.P256())
	parse := func(text string) VerifierConfig {
		tmpl, err := agentpath.Parse(Name, text, PathValue)
		if err != nil {
			t.Fatal(err)
		}
		return VerifierConfig{AgentPathTemplate: text, Path: tmpl.Path}
	}
	v := newVerifier(t, parse("/{{ .PluginName }}/{{ .Subject.CommonName }}"), root)
	if got, err := newMachine(t, leaf("host-1.example"), key, root).attest(t, v); err != nil || got.AgentID.Path() != "/spire/agent/x509pop/host-1.example" {
		t.Errorf("agent ID %s, error %v", got.AgentID, err)
	}
	for _, cn := range []string{
		"", ".", "..", "/", "a/b", "../../server", "a/../b", "/a", "a/", "%2e", "%2e%2e", "%2F", "%61", "tokén", "\uff0e\uff0e", "a\uff0fb",
		"a b", "a\\b", "a?b", "a#b", "a:b", "a\x00b", "a\n", "*",
	} {
		got, err := newMachine(t, leaf(cn), key, root).attest(t, v)
		if !errors.Is(err, node.ErrRefused) || !got.AgentID.IsZero() {
			t.Errorf("%q: agent ID %q, error %v", cn, got.AgentID, err)
		}
	}
	san := newVerifier(t, parse("/x509pop/{{ .URISanSelectors.dc }}/{{ .SerialNumberHex }}"), root)
	for uri, want := range map[string]string{
		"x509pop://example.org/dc/east":          "/spire/agent/x509pop/east/0a1b2c",
		"x509pop://example.org/dc/east/1":        "",
		"x509pop://example.org/dc/%2e%2e":        "",
		"x509pop://example.org/dc/a%2fb":         "",
		"x509pop://example.org/dc/../../server/": "",
		"x509pop://example.org/other/x":          "",
	} {
		got, err := newMachine(t, leaf("", uri), key, root).attest(t, san)
		if want == "" && !errors.Is(err, node.ErrRefused) || want != "" && (err != nil || got.AgentID.Path() != want) {
			t.Errorf("%s: agent ID %q, error %v", uri, got.AgentID, err)
		}
	}
}

// TestPathStaysBelow: whatever makes the path, the ID is this method's.
func TestPathStaysBelow(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	m := newMachine(t, leaf("x"), newECDSA(t, elliptic.P256()), root)
	for _, path := range []string{"/join_token/x", "/x509pop", "/x509pop/", "x509pop/x", "", "/x509pop/../join_token/x", "/x509pop//x"} {
		v := newVerifier(t, VerifierConfig{AgentPathTemplate: "x", Path: func(any) (string, error) { return path, nil }}, root)
		if got, err := m.attest(t, v); err == nil {
			t.Errorf("path %q: %s", path, got.AgentID)
		}
	}
}
