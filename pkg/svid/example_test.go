package svid_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/svid"
)

// From an authority's certificate and a request to an X509-SVID: what package
// ca does, with keys that it rotates.
func Example() {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	now := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	caKey, workloadKey := keyKinds()["P-256"], keyKinds()["P-384"]

	tmpl, err := svid.CATemplate(now, now.Add(24*time.Hour), [16]byte{1}, td, pkix.Name{Organization: []string{"SPIFFE"}}, caKey.Public())
	if err != nil {
		log.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, caKey.Public(), caKey)
	if err != nil {
		log.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		log.Fatal(err)
	}
	issuer, err := svid.NewX509Issuer(td, []*x509.Certificate{root})
	if err != nil {
		log.Fatal(err)
	}

	approval, err := issuer.Approve(now, [16]byte{2}, svid.X509Request{
		Kind: svid.Workload, ID: spiffeid.RequireFromPath(td, "/web"), PublicKey: workloadKey.Public(), TTL: 48 * time.Hour,
	})
	if err != nil {
		log.Fatal(err)
	}
	digest, opts, err := approval.Take()
	if err != nil {
		log.Fatal(err)
	}
	signature, err := caKey.Sign(rand.Reader, digest, opts)
	if err != nil {
		log.Fatal(err)
	}
	out, err := approval.Seal(signature)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(out.NotBefore, out.NotAfter, out.Capped)

	_, _, err = approval.Take()
	fmt.Println(err)
	// Output:
	// 2026-03-14 11:59:50 +0000 UTC 2026-03-15 12:00:00 +0000 UTC true
	// approval was used already
}
