package cache_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/agent/cachetest"
)

// TestKeyThatNoJWKSHas: a JWT authority that a JWKS cannot have, which another
// server may send, is left out; the others are served.
func TestKeyThatNoJWKSHas(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	full := s.Full()
	b := full.Bundles[0].GetBundle()
	want := len(b.GetJwtAuthorities())
	b.JwtAuthorities = append(b.JwtAuthorities, &types.JWTKey{KeyId: "odd", PublicKey: pkix})
	if err := c.Apply(full); err != nil {
		t.Fatal(err)
	}
	if err := c.Synced(s.Synced()); err != nil {
		t.Fatal(err)
	}
	put(t, c, s, s.Entry("e", "/w", "a"))
	g, err := fetch(t.Context(), c, "a")
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Bundle.JWTAuthorities; len(got) != want || want == 0 {
		t.Errorf("%d JWT authorities, want %d", len(got), want)
	}
}
