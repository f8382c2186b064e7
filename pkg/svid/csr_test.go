package svid_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/svid"
)

func newCSR(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	tmpl := &x509.CertificateRequest{}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// claimEverything asks for all that a CSR can ask for and must not get.
func claimEverything(r *x509.CertificateRequest) {
	r.Subject = pkix.Name{CommonName: "canary-subject", Organization: []string{"canary-org"}, Country: []string{"XX"}, SerialNumber: "canary-sn"}
	r.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/spire/server"}, {Scheme: "https", Host: "canary-uri"}}
	r.DNSNames = []string{"canary-dns.example.org"}
	r.EmailAddresses = []string{"canary-mail@example.org"}
	r.IPAddresses = []net.IP{{203, 0, 113, 77}}
	r.ExtraExtensions = []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA
		{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{0x03, 0x02, 0x01, 0x06}},       // keyCertSign
		{Id: asn1.ObjectIdentifier{1, 2, 3, 4, 5}, Value: []byte("canary-extension")},
	}
}

// TestS19_CSRContentIsIgnored: of a CSR nothing but the key reaches the
// certificate: it is the same as for a CSR that asks for nothing.
func TestS19_CSRContentIsIgnored(t *testing.T) {
	t.Parallel()
	for name, key := range keyKinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var tbs [][]byte
			ca := newAuthority(t, keyKinds()["P-256"], noon, 24*time.Hour)
			for _, change := range []func(*x509.CertificateRequest){nil, claimEverything} {
				pub, err := svid.ParseCSR(newCSR(t, key, change))
				if err != nil {
					t.Fatal(err)
				}
				req := webRequest()
				req.PublicKey = pub
				out, cert := ca.issue(t, noon, req)
				tbs = append(tbs, cert.RawTBSCertificate)
				if bytes.Contains(out.Chain[0], []byte("canary")) {
					t.Error("the CSR's content is in the certificate")
				}
			}
			if diff := cmp.Diff(tbs[0], tbs[1]); diff != "" {
				t.Errorf("the CSR changed the certificate:\n%s", diff)
			}
		})
	}
}

func TestParseMintCSR(t *testing.T) {
	t.Parallel()
	key := keyKinds()["P-256"]
	got, err := svid.ParseMintCSR(newCSR(t, key, func(r *x509.CertificateRequest) {
		r.Subject = pkix.Name{CommonName: "canary"}
		r.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/web"}}
		r.DNSNames = []string{"a.example.org", "b.example.org"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := svid.X509Request{Kind: svid.Workload, ID: webID, PublicKey: key.Public(), DNSNames: []string{"a.example.org", "b.example.org"}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, uris := range map[string][]*url.URL{
		"none":         nil,
		"two":          {webID.URL(), webID.URL()},
		"not SPIFFE":   {{Scheme: "https", Host: "example.org", Path: "/web"}},
		"with a query": {{Scheme: "spiffe", Host: "example.org", Path: "/web", RawQuery: "x"}},
		"dot segment":  {{Scheme: "spiffe", Host: "example.org", Path: "/a/../web"}},
	} {
		_, err := svid.ParseMintCSR(newCSR(t, key, func(r *x509.CertificateRequest) { r.URIs = uris }))
		if !errors.Is(err, svid.ErrInvalid) {
			t.Errorf("URI %s: %v", name, err)
		}
	}
}

func TestParseCSRRefuses(t *testing.T) {
	t.Parallel()
	good := newCSR(t, keyKinds()["P-256"], nil)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		der  []byte
		want error
	}{
		"nothing":         {nil, svid.ErrInvalid},
		"text":            {[]byte("-----BEGIN CERTIFICATE REQUEST-----"), svid.ErrInvalid},
		"cut":             {good[:len(good)-1], svid.ErrInvalid},
		"longer":          {append(slices.Clone(good), 0), svid.ErrInvalid},
		"other signature": {flip(good, len(good)-1), svid.ErrInvalid},
		"Ed25519":         {newCSR(t, edKey, nil), svid.ErrRefused},
		"P-224":           {newCSR(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), nil), svid.ErrRefused},
	} {
		if _, err := svid.ParseCSR(c.der); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func flip(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 1
	return b
}

// TestS08_CSRLimit tries the limit of size on both sides; padding is in the
// subject.
func TestS08_CSRLimit(t *testing.T) {
	t.Parallel()
	key := keyKinds()["RSA-2048"] // its signatures have one length
	padded := func(n int) []byte {
		return newCSR(t, key, func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, n)}}
		})
	}
	base := svid.MaxCSR - len(padded(svid.MaxCSR-2000)) + svid.MaxCSR - 2000
	for extra, ok := range map[int]bool{-1: true, 0: true, 1: false} {
		der := padded(base + extra)
		if len(der) != svid.MaxCSR+extra {
			t.Fatalf("the CSR has %d bytes, want %d", len(der), svid.MaxCSR+extra)
		}
		if _, err := svid.ParseCSR(der); (err == nil) != ok {
			t.Errorf("%d bytes: %v", len(der), err)
		}
	}
}

// TestS08_RSALimits tries sizes and exponents on both sides of the limits.
func TestS08_RSALimits(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, keyKinds()["P-256"], noon, time.Hour)
	odd := func(bits int) *big.Int { // a modulus needs no factors to be judged
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return n.Add(n, big.NewInt(1))
	}
	for name, c := range map[string]struct {
		n  *big.Int
		e  int
		ok bool
	}{
		"2047 bits":          {odd(2047), 65537, false},
		"2048 bits":          {odd(2048), 65537, true},
		"2049 bits":          {odd(2049), 65537, true},
		"4095 bits":          {odd(4095), 65537, true},
		"4096 bits":          {odd(4096), 65537, true},
		"4097 bits":          {odd(4097), 65537, false},
		"even modulus":       {new(big.Int).Lsh(big.NewInt(1), 2047), 65537, false},
		"exponent 1":         {odd(2048), 1, false},
		"exponent 3":         {odd(2048), 3, false},
		"exponent 65535":     {odd(2048), 65535, false},
		"exponent 65536":     {odd(2048), 65536, false},
		"exponent 65538":     {odd(2048), 65538, false},
		"exponent 65539":     {odd(2048), 65539, true},
		"exponent 2^31-1":    {odd(2048), 1<<31 - 1, true},
		"exponent 2^31+1":    {odd(2048), 1<<31 + 1, false},
		"exponent 0":         {odd(2048), 0, false},
		"exponent negative":  {odd(2048), -65537, false},
		"modulus of nothing": {new(big.Int), 65537, false},
	} {
		req := webRequest()
		req.PublicKey = &rsa.PublicKey{N: c.n, E: c.e}
		_, err := ca.issuer.Approve(noon, [16]byte{}, req)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, svid.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestS07_HugeKeysAreCheap: a CSR whose verification would cost much is refused
// without it.
func TestS07_HugeKeysAreCheap(t *testing.T) {
	t.Parallel()
	huge := new(big.Int).Lsh(big.NewInt(1), 8*8000-1)
	huge.Add(huge, big.NewInt(1))
	spki, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: huge, E: 1<<31 - 1}), BitLength: 8 * len(x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: huge, E: 1<<31 - 1}))},
	})
	if err != nil {
		t.Fatal(err)
	}
	// The request around the key, by hand: CreateCertificateRequest signs.
	info, err := asn1.Marshal(struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []int `asn1:"tag:0"`
	}{0, asn1.RawValue{FullBytes: []byte{0x30, 0}}, asn1.RawValue{FullBytes: spki}, nil})
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: info},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: make([]byte, 8000), BitLength: 8 * 8000},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{"RSA of 64,000 bits": der, "1 MiB": make([]byte, 1<<20)} {
		fastest := time.Hour
		for range 5 {
			start := time.Now()
			_, err := svid.ParseCSR(der)
			fastest = min(fastest, time.Since(start))
			if !errors.Is(err, svid.ErrRefused) && !errors.Is(err, svid.ErrInvalid) {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if fastest > 10*time.Millisecond {
			t.Errorf("%s: refused after %s", name, fastest)
		}
	}
}

// FuzzParseCSR feeds foreign bytes. What is accepted makes a certificate that
// has the CSR's key and nothing else of it (S19).
func FuzzParseCSR(f *testing.F) {
	for _, key := range keyKinds() {
		f.Add(newCSR(f, key, nil))
		f.Add(newCSR(f, key, claimEverything))
	}
	f.Add([]byte{})
	ca := newAuthority(f, keyKinds()["P-256"], noon, 24*time.Hour)
	want, err := ca.issuer.Approve(noon, [16]byte{}, webRequest())
	if err != nil {
		f.Fatal(err)
	}
	plain := must(x509.ParseCertificate(seal(f, ca.key, want).Chain[0]))
	f.Fuzz(func(t *testing.T, der []byte) {
		if req, err := svid.ParseMintCSR(der); err == nil {
			if _, err := svid.ParseCSR(der); err != nil || req.Kind != svid.Workload || req.ID.IsZero() {
				t.Fatalf("ParseMintCSR accepts what ParseCSR does not: %v", err)
			}
		}
		pub, err := svid.ParseCSR(der)
		if err != nil {
			if !errors.Is(err, svid.ErrInvalid) && !errors.Is(err, svid.ErrRefused) {
				t.Fatalf("error is none of the sentinels: %v", err)
			}
			return
		}
		req := webRequest()
		req.PublicKey = pub
		approved, err := ca.issuer.Approve(noon, [16]byte{}, req)
		if err != nil {
			t.Fatalf("the key of an accepted CSR is refused: %v", err)
		}
		cert, err := x509.ParseCertificate(seal(t, ca.key, approved).Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(cert.RawSubject, plain.RawSubject) || len(cert.Extensions) != len(plain.Extensions) {
			t.Fatal("the CSR changed the subject or the extensions")
		}
		for i, e := range cert.Extensions {
			keyID := e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 14})
			if !keyID && !bytes.Equal(e.Value, plain.Extensions[i].Value) {
				t.Fatalf("the CSR changed extension %s", e.Id)
			}
		}
	})
}

// FuzzX509Request wants every approved request to be a certificate that says
// what was asked for.
func FuzzX509Request(f *testing.F) {
	f.Add("/web", "a.example.org,b", int64(time.Hour), int64(1773489600), []byte{1})
	f.Add("/web", "*.example.org", int64(1), int64(2524607990), []byte{0xff})
	f.Fuzz(func(t *testing.T, path, dns string, ttl, now int64, random []byte) {
		id, err := spiffeid.FromPath(td, path)
		if err != nil || now < 0 || now > 100*365*24*3600 {
			return
		}
		start := time.Unix(now, 0)
		ca := newAuthority(t, keyKinds()["P-256"], start, 24*time.Hour)
		req := webRequest()
		req.ID, req.TTL = id, time.Duration(ttl)
		if dns != "" {
			for name := range bytes.SplitSeq([]byte(dns), []byte(",")) {
				req.DNSNames = append(req.DNSNames, string(name))
			}
		}
		var r [16]byte
		copy(r[:], random)
		approved, err := ca.issuer.Approve(start, r, req)
		if err != nil {
			return
		}
		cert, err := x509.ParseCertificate(seal(t, ca.key, approved).Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if len(cert.URIs) != 1 || cert.URIs[0].String() != id.String() || !slices.Equal(cert.DNSNames, req.DNSNames) {
			t.Fatalf("asked for %s %q, got %s %q", id, req.DNSNames, cert.URIs, cert.DNSNames)
		}
		if cert.IsCA || cert.NotAfter.After(ca.cert.NotAfter) || cert.NotAfter.After(start.Add(req.TTL)) {
			t.Fatalf("CA %t, until %s", cert.IsCA, cert.NotAfter)
		}
	})
}
