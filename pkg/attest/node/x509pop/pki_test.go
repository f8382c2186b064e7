package x509pop

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// authority is a certificate that can sign others, and its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newECDSA(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes a certificate for pub; template has what differs from the usual.
func (a *authority) issue(t testing.TB, template x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(0x0a1b2c)
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, key := &template, by
	if a != nil {
		parent, key = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// newAuthority makes one that by signs; by itself if that is nil.
func newAuthority(t testing.TB, name string, by *authority) *authority {
	t.Helper()
	return newAuthorityWith(t, name, by, newECDSA(t, elliptic.P256()))
}

func newAuthorityWith(t testing.TB, name string, by *authority, key crypto.Signer) *authority {
	t.Helper()
	template := x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return &authority{cert: by.issue(t, template, key.Public(), key), key: key}
}

// machine is a node with its certificate.
type machine struct {
	chain []*x509.Certificate
	key   crypto.Signer
}

// leaf is the usual certificate of a machine.
func leaf(cn string, uris ...string) x509.Certificate {
	out := x509.Certificate{Subject: pkix.Name{CommonName: cn}, KeyUsage: x509.KeyUsageDigitalSignature}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			panic(err)
		}
		out.URIs = append(out.URIs, parsed)
	}
	return out
}

// newMachine has a certificate by the last of the authorities; the others but
// the first, which is the root, come with it.
func newMachine(t testing.TB, template x509.Certificate, key crypto.Signer, authorities ...*authority) machine {
	t.Helper()
	last := authorities[len(authorities)-1]
	m := machine{chain: []*x509.Certificate{last.issue(t, template, key.Public(), nil)}, key: key}
	for i := len(authorities) - 1; i > 0; i-- {
		m.chain = append(m.chain, authorities[i].cert)
	}
	return m
}

func ders(certs ...*x509.Certificate) [][]byte {
	out := make([][]byte, 0, len(certs))
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}

func payload(t testing.TB, certs ...*x509.Certificate) []byte {
	t.Helper()
	return encode(t, evidence{Certificates: ders(certs...)})
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// files writes what a Prover reads.
func (m machine) files(t testing.TB) ProverConfig {
	t.Helper()
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(m.key)
	if err != nil {
		t.Fatal(err)
	}
	c := ProverConfig{PrivateKeyPath: filepath.Join(dir, "key.pem"), CertificatePath: filepath.Join(dir, "cert.pem")}
	writePEM(t, c.PrivateKeyPath, "PRIVATE KEY", key)
	writePEM(t, c.CertificatePath, "CERTIFICATE", ders(m.chain...)...)
	return c
}

func writePEM(t testing.TB, path, kind string, blocks ...[]byte) {
	t.Helper()
	var out []byte
	for _, b := range blocks {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})...)
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

// newVerifier trusts the roots, in the mode external_pki.
func newVerifier(t testing.TB, c VerifierConfig, trusted ...*authority) *Verifier {
	t.Helper()
	var certs []*x509.Certificate
	for _, a := range trusted {
		certs = append(certs, a.cert)
	}
	if c.Mode == modeSPIFFE {
		c.TrustBundle = func() []*x509.Certificate { return certs }
	} else {
		c.CABundlePath = filepath.Join(t.TempDir(), "ca.pem")
		writePEM(t, c.CABundlePath, "CERTIFICATE", ders(certs...)...)
	}
	v, err := NewVerifier(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// attest shows the machine's chain and signs as it should.
func (m machine) attest(t testing.TB, v *Verifier) (node.Result, error) {
	t.Helper()
	return v.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: payload(t, m.chain...), Challenge: m.answer(t)})
}

func (m machine) answer(t testing.TB) func(context.Context, []byte) ([]byte, error) {
	return func(_ context.Context, message []byte) ([]byte, error) {
		asked, err := parse[challenge](message, "challenge")
		if err != nil {
			t.Error(err)
			return nil, err
		}
		return respond(asked, m.key)
	}
}

func ip(t testing.TB, text string) net.IP {
	t.Helper()
	out := net.ParseIP(text)
	if out == nil {
		t.Fatalf("%q is no IP address", text)
	}
	return out
}
