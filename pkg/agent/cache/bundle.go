package cache

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/credence-id/credence/pkg/svid"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is the authorities of one trust domain. It is shared and must not be
// changed.
type Bundle struct {
	TrustDomain spiffeid.TrustDomain
	// X509Authorities are certificates, DER, one after the other.
	X509Authorities []byte
	// JWTAuthorities verify JWT-SVIDs; they are in the server's order.
	JWTAuthorities []JWTAuthority

	version     *feedv1.BundleState // guarded by Cache.mu
	unconfirmed bool                // guarded by Cache.mu
	jwtBundle   *jwtbundle.Bundle

	// x509 says of each X.509 authority, by subject key ID, whether it is
	// tainted; jwt of each JWT authority, by key ID.
	x509, jwt map[string]bool
}

// JWTAuthority is a public key and its name in JWT headers.
type JWTAuthority struct {
	KeyID string
	Key   crypto.PublicKey
}

// parseBundle reads a bundle. An authority it cannot read is left out and
// reported, as the others are still good.
func parseBundle(state *feedv1.BundleState) (*Bundle, error) {
	raw := state.GetBundle()
	td, err := spiffeid.TrustDomainFromString(raw.GetTrustDomain())
	if err != nil {
		return nil, fmt.Errorf("bundle of trust domain %q: %w", raw.GetTrustDomain(), err)
	}
	b := &Bundle{TrustDomain: td, version: state, x509: map[string]bool{}, jwt: map[string]bool{}}
	var problems []error
	for i, a := range raw.GetX509Authorities() {
		certs, err := x509.ParseCertificates(a.GetAsn1())
		if err != nil {
			problems = append(problems, fmt.Errorf("bundle of trust domain %q: X.509 authority %d: %w", td.Name(), i, err))
			continue
		}
		b.X509Authorities = append(b.X509Authorities, a.GetAsn1()...)
		for _, cert := range certs {
			id := string(cert.SubjectKeyId)
			b.x509[id] = b.x509[id] || a.GetTainted()
		}
	}
	for i, a := range raw.GetJwtAuthorities() {
		key, err := x509.ParsePKIXPublicKey(a.GetPublicKey())
		if err == nil && a.GetKeyId() == "" {
			err = errors.New("key ID is empty")
		}
		if err == nil {
			// It would keep the others from workloads, who get a JWKS.
			err = svid.CheckJWK(key)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("bundle of trust domain %q: JWT authority %d: %w", td.Name(), i, err))
			continue
		}
		b.JWTAuthorities = append(b.JWTAuthorities, JWTAuthority{KeyID: a.GetKeyId(), Key: key})
		b.jwt[a.GetKeyId()] = a.GetTainted()
	}
	byID := make(map[string]crypto.PublicKey, len(b.JWTAuthorities))
	for _, a := range b.JWTAuthorities {
		byID[a.KeyID] = a.Key
	}
	b.jwtBundle = jwtbundle.FromJWTAuthorities(td, byID)
	return b, errors.Join(problems...)
}

// tainted says whether an authority in the chain of s is tainted.
func (b *Bundle) tainted(s *x509SVID) bool {
	return slices.ContainsFunc(s.issuers, func(id string) bool { return b.x509[id] })
}

// knows says whether the chain of s ends in one of the authorities.
func (b *Bundle) knows(s *x509SVID) bool {
	return slices.ContainsFunc(s.issuers, func(id string) bool {
		_, ok := b.x509[id]
		return ok
	})
}

// lost says whether s was good by the bundle old and is not any more: its
// authority was tainted or revoked.
func (b *Bundle) lost(old *Bundle, s *x509SVID) bool {
	return b.tainted(s) || old != nil && old.knows(s) && !b.knows(s)
}

// lostJWT is the same for a JWT-SVID's key ID.
func (b *Bundle) lostJWT(old *Bundle, keyID string) bool {
	tainted, ok := b.jwt[keyID]
	if ok || old == nil {
		return tainted
	}
	_, was := old.jwt[keyID]
	return was
}
