package svid_test

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"math/big"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/credence-id/credence/pkg/svid"
)

// TestCheckJWK: what is let through can be written, what is not cannot.
func TestCheckJWK(t *testing.T) {
	t.Parallel()
	on := func(c elliptic.Curve) crypto.PublicKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &key.PublicKey
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	agreement, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		key  crypto.PublicKey
		good bool
	}{
		"P-224":   {on(elliptic.P224()), false},
		"P-256":   {on(elliptic.P256()), true},
		"P-384":   {on(elliptic.P384()), true},
		"P-521":   {on(elliptic.P521()), true},
		"RSA":     {&rsa.PublicKey{N: big.NewInt(3233), E: 17}, true},
		"Ed25519": {edwards, true},
		"X25519":  {agreement.PublicKey(), false},
		"none":    {nil, false},
	} {
		err := svid.CheckJWK(tt.key)
		if (err == nil) != tt.good || err != nil && !errors.Is(err, svid.ErrInvalid) {
			t.Errorf("%s: want good=%t, got %v", name, tt.good, err)
		}
		if _, err := json.Marshal(jose.JSONWebKey{Key: tt.key, KeyID: "x"}); (err == nil) != tt.good {
			t.Errorf("%s: want good=%t, the JWK gives %v", name, tt.good, err)
		}
	}
}
