package workloadapi

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/svid"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
)

const (
	// maxTokens is how many JWT-SVIDs are remembered, and maxTokensBytes how long
	// they may be together: what they say takes a small multiple of that.
	maxTokens      = 4096
	maxTokensBytes = 4 << 20
	// tokenGeneration is a third of how long one is remembered at the most.
	tokenGeneration = 20 * time.Second
)

// tokens remembers JWT-SVIDs that an authority has signed, by their SHA-256, so
// that a token that comes with many requests has its signature checked once a
// minute. Nothing else about it is taken from memory: that its key is in the
// bundle of whoever asks, its times and its audience are looked at every time.
type tokens struct {
	mu sync.Mutex
	// guarded by mu; one that is not in the young generation may be in the old:
	young, old tokenSet
}

// tokenSet is one of two generations.
type tokenSet struct {
	begun  time.Time
	byHash map[[sha256.Size]byte]*svid.VerifiedJWT
	bytes  int
}

// validate is [svid.ValidateJWT], and answers as that does.
func (t *tokens) validate(now time.Time, token string, bundles jwtbundle.Source, audience string) (*svid.JWTClaims, error) {
	if len(token) > svid.MaxToken {
		return svid.ValidateJWT(now, token, bundles, audience)
	}
	hash := sha256.Sum256([]byte(token))
	v := t.find(now, hash)
	if v == nil || !v.Trusted(bundles) {
		var err error
		if v, err = svid.VerifyJWT(token, bundles); err != nil {
			return nil, err
		}
		t.keep(now, hash, len(token), v)
	}
	return v.Validate(now, audience)
}

func (t *tokens) find(now time.Time, hash [sha256.Size]byte) *svid.VerifiedJWT {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.age(now)
	if v := t.young.byHash[hash]; v != nil {
		return v
	}
	return t.old.byHash[hash]
}

func (t *tokens) keep(now time.Time, hash [sha256.Size]byte, size int, v *svid.VerifiedJWT) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.age(now)
	if t.young.byHash[hash] == nil {
		if len(t.young.byHash) >= maxTokens/2 || t.young.bytes+size > maxTokensBytes/2 {
			t.turn(now)
		}
		t.young.bytes += size
	}
	t.young.byHash[hash] = v
}

// age forgets what is too old. It is called with mu held.
func (t *tokens) age(now time.Time) {
	switch old := now.Sub(t.young.begun); {
	case old >= 2*tokenGeneration:
		t.turn(now)
		t.turn(now)
	case old >= tokenGeneration:
		t.turn(now)
	}
}

// turn makes the young generation the old one. It is called with mu held.
func (t *tokens) turn(now time.Time) {
	t.old = t.young
	t.young = tokenSet{begun: now, byHash: make(map[[sha256.Size]byte]*svid.VerifiedJWT)}
}
