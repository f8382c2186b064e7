package svid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/svid"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	webID = spiffeid.RequireFromString("spiffe://example.org/web")
	noon  = time.Date(2026, 3, 14, 12, 0, 0, 500, time.UTC)
)

// keyKinds are made once: RSA keys take their time.
var keyKinds = sync.OnceValue(func() map[string]crypto.Signer {
	kinds := map[string]crypto.Signer{}
	for name, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		kinds[name] = must(ecdsa.GenerateKey(curve, rand.Reader))
	}
	for name, bits := range map[string]int{"RSA-2048": 2048, "RSA-4096": 4096} {
		kinds[name] = must(rsa.GenerateKey(rand.Reader, bits))
	}
	return kinds
})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// authority is an X.509 authority with its key, self-signed.
type authority struct {
	key    crypto.Signer
	cert   *x509.Certificate
	issuer *svid.X509Issuer
}

func newAuthority(t testing.TB, key crypto.Signer, now time.Time, ttl time.Duration) authority {
	t.Helper()
	subject := pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}}
	tmpl, err := svid.CATemplate(now, now.Add(ttl), [16]byte{7}, td, subject, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := svid.NewX509Issuer(td, []*x509.Certificate{cert})
	if err != nil {
		t.Fatal(err)
	}
	return authority{key: key, cert: cert, issuer: issuer}
}

func (a authority) issue(t testing.TB, now time.Time, req svid.X509Request) (*svid.X509SVID, *x509.Certificate) {
	t.Helper()
	approved, err := a.issuer.Approve(now, [16]byte{0xff, 1, 2, 3}, req)
	if err != nil {
		t.Fatal(err)
	}
	out := seal(t, a.key, approved)
	cert, err := x509.ParseCertificate(out.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return out, cert
}

type sealer[T any] interface {
	Take() ([]byte, crypto.SignerOpts, error)
	Seal([]byte) (T, error)
}

// seal signs an approval.
func seal[T any](t testing.TB, key crypto.Signer, a sealer[T]) T {
	t.Helper()
	digest, opts, err := a.Take()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.Seal(sig)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func webRequest() svid.X509Request {
	return svid.X509Request{Kind: svid.Workload, ID: webID, PublicKey: keyKinds()["P-256"].Public(), TTL: time.Hour}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); run with -update if it is meant:\n%s", path, diff)
	}
}
