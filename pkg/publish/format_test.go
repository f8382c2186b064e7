package publish

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/registry"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// sample is a bundle with two authorities of each kind.
func sample(t *testing.T) *registry.Bundle {
	t.Helper()
	b := &registry.Bundle{TrustDomain: td, SequenceNumber: 7, RefreshHint: time.Minute}
	for i := range int64(2) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1 + i), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		pkix, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		id := string(rune('a' + i))
		b.X509Authorities = append(b.X509Authorities, registry.X509Authority{DER: der, Tainted: i == 1})
		b.JWTAuthorities = append(b.JWTAuthorities, registry.JWTAuthority{KeyID: "jwt-" + id, PKIX: pkix})
		b.WITAuthorities = append(b.WITAuthorities, registry.WITAuthority{KeyID: "wit-" + id, PKIX: pkix})
	}
	return b
}

func encode(t *testing.T, b *registry.Bundle, f Format, hint time.Duration) []byte {
	t.Helper()
	out, err := Encode(b, f, hint)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSPIFFE: go-spiffe reads what is written, and nothing is lost but the keys
// of WIT-SVIDs.
func TestSPIFFE(t *testing.T) {
	t.Parallel()
	b := sample(t)
	for hint, want := range map[time.Duration]time.Duration{0: time.Minute, 90 * time.Second: 90 * time.Second, 1500 * time.Millisecond: 2 * time.Second} {
		got, err := spiffebundle.Parse(td, encode(t, b, SPIFFE, hint))
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := got.RefreshHint(); !ok || h != want {
			t.Errorf("refresh hint %v, want %v", h, want)
		}
		if n, ok := got.SequenceNumber(); !ok || n != 7 {
			t.Errorf("sequence number %d", n)
		}
		if x, j := len(got.X509Authorities()), len(got.JWTAuthorities()); x != 2 || j != 2 {
			t.Errorf("%d X.509 and %d JWT authorities, want 2 and 2", x, j)
		}
		if !got.HasJWTAuthority("jwt-a") || got.HasJWTAuthority("wit-a") {
			t.Errorf("JWT authorities %v", got.JWTAuthorities())
		}
	}
}

// TestJWKS has no member or value that is SPIFFE's.
func TestJWKS(t *testing.T) {
	t.Parallel()
	text := encode(t, sample(t), JWKS, time.Hour)
	if bytes.Contains(text, []byte("svid")) || bytes.Contains(text, []byte("spiffe")) {
		t.Errorf("it says more than RFC 7517: %s", text)
	}
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil || len(set.Keys) != 4 {
		t.Errorf("%d keys, %v; want 4", len(set.Keys), err)
	}
	got, err := jwtbundle.Parse(td, encode(t, &registry.Bundle{JWTAuthorities: sample(t).JWTAuthorities}, JWKS, 0))
	if err != nil || len(got.JWTAuthorities()) != 2 {
		t.Errorf("read back: %v, %v", got, err)
	}
}

func TestPEM(t *testing.T) {
	t.Parallel()
	b := sample(t)
	got, err := x509bundle.Parse(td, encode(t, b, PEM, 0))
	if err != nil {
		t.Fatal(err)
	}
	for i, cert := range got.X509Authorities() {
		if !bytes.Equal(cert.Raw, b.X509Authorities[i].DER) {
			t.Errorf("authority %d is another", i)
		}
	}
}

// TestSameBytes: one bundle is the same text every time, so that several servers
// write the same.
func TestSameBytes(t *testing.T) {
	t.Parallel()
	b := sample(t)
	for _, f := range []Format{SPIFFE, JWKS, PEM} {
		want := encode(t, b, f, 0)
		for range 20 {
			if diff := cmp.Diff(string(want), string(encode(t, b, f, 0))); diff != "" {
				t.Fatalf("%s (-first +again):\n%s", f, diff)
			}
		}
	}
}

func TestEmptyAndBroken(t *testing.T) {
	t.Parallel()
	if got := string(encode(t, &registry.Bundle{}, SPIFFE, 0)); got != `{"keys":[]}` {
		t.Errorf("an empty bundle is %s", got)
	}
	for name, b := range map[string]*registry.Bundle{
		"X.509": {X509Authorities: []registry.X509Authority{{DER: []byte("x")}}},
		"JWT":   {JWTAuthorities: []registry.JWTAuthority{{KeyID: "k", PKIX: []byte("x")}}},
	} {
		if _, err := Encode(b, SPIFFE, 0); err == nil {
			t.Errorf("a broken %s authority is written", name)
		}
	}
}

func TestParseFormat(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Format{"spiffe": SPIFFE, "SPIFFE": SPIFFE, "jwks": JWKS, "pem": PEM, "der": "", "": ""} {
		if got, err := ParseFormat(name); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}
