package workloadapi

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/svid"
)

// jwtKeysOf are the JWT authorities of a server's bundle, by key ID.
func jwtKeysOf(t *testing.T, s *cachetest.Server) map[string]crypto.PublicKey {
	t.Helper()
	out := map[string]crypto.PublicKey{}
	for _, a := range s.Bundle().GetBundle().GetJwtAuthorities() {
		key, err := x509.ParsePKIXPublicKey(a.GetPublicKey())
		if err != nil {
			t.Fatal(err)
		}
		out[a.GetKeyId()] = key
	}
	return out
}

// TestRememberedTokenIsAsIfItWereNot: whatever has changed since a token was
// verified, the answer is that for one that was never seen.
func TestRememberedTokenIsAsIfItWereNot(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	td, now := s.TrustDomain, time.Now()
	end := now.Add(30 * time.Second)
	token := s.SignJWT(map[string]any{"sub": "spiffe://example.org/x", "aud": []string{"me", "us"}, "exp": end.Unix(), "nbf": now.Unix(), "n": 1})
	signed := jwtKeysOf(t, s)
	s.RotateJWT()
	both := jwtKeysOf(t, s)
	s.TaintJWT()
	tainted := jwtKeysOf(t, s)
	swapped := map[string]crypto.PublicKey{"example.org-1": both["example.org-2"], "example.org-2": both["example.org-1"]}
	foreign := jwtKeysOf(t, cachetest.New(t, "other.org"))

	bundle := func(keys map[string]crypto.PublicKey) *jwtbundle.Bundle {
		return jwtbundle.FromJWTAuthorities(td, keys)
	}
	for name, tc := range map[string]struct {
		now      time.Time
		audience string
		bundles  jwtbundle.Source
		want     string // in the error; "": it is valid
	}{
		"the same":            {now, "me", bundle(signed), ""},
		"another of its own":  {now, "us", bundle(signed), ""},
		"another audience":    {now, "you", bundle(signed), "audience"},
		"no audience":         {now, "", bundle(signed), "audience"},
		"about to end":        {end.Add(-time.Second), "me", bundle(signed), ""},
		"ended":               {end.Add(svid.Skew + 2*time.Second), "me", bundle(signed), "expired"},
		"not begun":           {now.Add(-svid.Skew - 2*time.Second), "me", bundle(signed), "not valid yet"},
		"key beside another":  {now, "me", bundle(both), ""},
		"tainted":             {now, "me", bundle(tainted), ""}, // It is in the bundle until it is revoked.
		"key removed":         {now, "me", bundle(map[string]crypto.PublicKey{"example.org-2": both["example.org-2"]}), "kid"},
		"kid of another key":  {now, "me", bundle(swapped), "signature"},
		"no key":              {now, "me", bundle(nil), "kid"},
		"no bundle":           {now, "me", jwtbundle.NewSet(), "no bundle"},
		"bundle of another":   {now, "me", jwtbundle.FromJWTAuthorities(spiffeid.RequireTrustDomainFromString("other.org"), foreign), "no bundle"},
		"another, same names": {now, "me", jwtbundle.FromJWTAuthorities(spiffeid.RequireTrustDomainFromString("other.org"), signed), "no bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var memory tokens
			if _, err := memory.validate(now, token, bundle(signed), "me"); err != nil {
				t.Fatal(err)
			}
			hash := sha256.Sum256([]byte(token))
			if memory.find(now, hash) == nil {
				t.Fatal("the token is not remembered")
			}
			got, err := memory.validate(tc.now, token, tc.bundles, tc.audience)
			want, wantErr := svid.ValidateJWT(tc.now, token, tc.bundles, tc.audience)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Errorf("remembered: %v; never seen: %v", err, wantErr)
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one of %q", err, tc.want)
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
				t.Errorf("never seen and remembered:\n%s", diff)
			}
		})
	}
}

// TestForgedTokenIsNotRemembered: what an authority has not signed leaves
// nothing behind, and helps no other.
func TestForgedTokenIsNotRemembered(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	keys := jwtbundle.FromJWTAuthorities(s.TrustDomain, jwtKeysOf(t, s))
	claims := map[string]any{"sub": "spiffe://example.org/x", "aud": "me", "exp": time.Now().Add(time.Minute).Unix()}
	forged := cachetest.New(t, "example.org").SignJWT(claims) // the same names, another key
	good := s.SignJWT(claims)
	mixed := good[:strings.LastIndexByte(good, '.')] + forged[strings.LastIndexByte(forged, '.'):]
	var memory tokens
	for range 2 {
		for _, token := range []string{forged, mixed, "", strings.Repeat("x", svid.MaxToken+1)} {
			if _, err := memory.validate(time.Now(), token, keys, "me"); err == nil {
				t.Errorf("accepted: %q", token)
			}
		}
		if n := len(memory.young.byHash) + len(memory.old.byHash); n != 0 {
			t.Errorf("%d are remembered", n)
		}
		if _, err := memory.validate(time.Now(), good, keys, "me"); err != nil {
			t.Error(err)
		}
		memory = tokens{}
	}
}

// TestTokensAreForgotten: none is remembered for more than a minute, however
// often it comes, nor more of them, or longer ones, than there may be.
func TestTokensAreForgotten(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	v := new(svid.VerifiedJWT)
	for offset := time.Duration(0); offset < tokenGeneration; offset += tokenGeneration / 7 {
		var memory tokens
		memory.keep(begin, [sha256.Size]byte{1}, 1, v)
		kept := begin.Add(offset)
		memory.find(kept, [sha256.Size]byte{})
		hash := [sha256.Size]byte{2}
		memory.keep(kept, hash, 1, v)
		var last time.Duration
		for after := time.Duration(0); after < 3*time.Minute; after += time.Second {
			if memory.find(kept.Add(after), hash) != nil {
				last = after
			}
		}
		if last < tokenGeneration-time.Second || last > 3*tokenGeneration || last > time.Minute {
			t.Errorf("kept %s after a generation began: remembered for %s", offset, last)
		}
		memory.keep(kept, hash, 1, v)
		if memory.find(kept.Add(time.Hour), hash) != nil {
			t.Error("remembered over a quiet hour")
		}
	}
	for name, size := range map[string]int{"short": 500, "long": svid.MaxToken} {
		var memory tokens
		for range 3 * maxTokens {
			var hash [sha256.Size]byte
			if _, err := rand.Read(hash[:]); err != nil {
				t.Fatal(err)
			}
			for range 2 { // The second time it is not another.
				memory.keep(begin, hash, size, v)
			}
			if memory.find(begin, hash) == nil {
				t.Fatal("the last one is forgotten")
			}
			n, bytes := len(memory.young.byHash)+len(memory.old.byHash), memory.young.bytes+memory.old.bytes
			if n > maxTokens || bytes > maxTokensBytes || bytes != n*size {
				t.Fatalf("%s: %d are remembered, %d bytes", name, n, bytes)
			}
		}
	}
}
