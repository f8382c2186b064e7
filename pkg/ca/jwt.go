package ca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// signedWindow is how far beyond need the journaled high-water mark of signed
// tokens is set, so that it is written at most once a window.
const signedWindow = 10 * time.Minute

// jwtFamily makes JWT authorities: a key and its ID.
type jwtFamily struct{ cfg *Config }

func (jwtFamily) name() string              { return "jwt" }
func (jwtFamily) slots() [2]string          { return [2]string{"jwt-signer-a", "jwt-signer-b"} }
func (f jwtFamily) keyType() keys.Type      { return f.cfg.JWTKeyType }
func (f jwtFamily) required() time.Duration { return f.cfg.requiredJWT() }

// most: active, prepared and one old, or with keys in memory two old. Relying
// parties fetch the key set often, and some bound it.
func (jwtFamily) most() int { return 3 }

// shortLife is what the usual token, and the mark over it, may need.
func (f jwtFamily) shortLife() time.Duration {
	return f.cfg.JWTSVIDTTL + signedWindow + svid.Skew
}

func (jwtFamily) journal(j *recordv1.Journal) *[]*recordv1.JournaledAuthority { return &j.Jwt }

func (f jwtFamily) create(now time.Time, key keys.Key) (*member, error) {
	public := key.Signer.Public()
	id, err := svid.KeyID(public)
	if err != nil {
		return nil, fmt.Errorf("naming a JWT key: %w", err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encoding a JWT key: %w", err)
	}
	return &member{
		state:    prepared,
		id:       id,
		slot:     key.ID,
		issuedAt: now.UTC().Truncate(time.Second),
		notAfter: now.Add(f.cfg.CATTL).UTC().Truncate(time.Second),
		public:   public,
		pkix:     pkix,
		key:      key.Signer,
		ledger:   new(ledger),
	}, nil
}

func (jwtFamily) published(b *registry.Bundle, m *member) bool {
	return slices.ContainsFunc(b.JWTAuthorities, func(a registry.JWTAuthority) bool {
		return a.KeyID == m.id && bytes.Equal(a.PKIX, m.pkix)
	})
}

func (jwtFamily) publish(b *registry.Bundle, m *member) {
	b.JWTAuthorities = append(b.JWTAuthorities, registry.JWTAuthority{KeyID: m.id, PKIX: m.pkix, ExpiresAt: m.notAfter})
}

func (jwtFamily) withdraw(b *registry.Bundle, m *member) {
	b.JWTAuthorities = slices.DeleteFunc(b.JWTAuthorities, func(a registry.JWTAuthority) bool { return a.KeyID == m.id })
}

func (jwtFamily) taint(b *registry.Bundle, m *member) *bool {
	for i := range b.JWTAuthorities {
		if b.JWTAuthorities[i].KeyID == m.id {
			return &b.JWTAuthorities[i].Tainted
		}
	}
	return nil
}

// retire sets the high-water mark. Tokens signed until now, also those of a
// process that ended without journaling them, expire by now plus the default
// TTL; longer ones, and those signed while the step is committed, are in the
// mark.
func (f jwtFamily) retire(m *member, now time.Time) *member {
	return raise(m.with(old), max(now.Add(f.cfg.JWTSVIDTTL).Unix(), m.ledger.signed.Load()))
}

func (jwtFamily) mark(m *member) *member {
	return raise(m.with(m.state), m.ledger.signed.Load()+int64(signedWindow/time.Second))
}

func raise(m *member, until int64) *member {
	until = min(max(until, m.signedUntil.Unix()), m.notAfter.Unix())
	m.signedUntil = time.Unix(until, 0).UTC()
	return m
}

func (jwtFamily) keepUntil(m *member) time.Time { return m.signedUntil.Add(svid.Skew) }

// sweep is also for keys of WIT-SVIDs, which other servers publish and this one
// does not have yet.
func (jwtFamily) sweep(b *registry.Bundle, now time.Time) time.Time {
	var next time.Time
	expired := func(at time.Time) bool {
		if at.IsZero() {
			return false
		}
		due := at.Add(svid.Skew)
		if !now.Before(due) {
			return true
		}
		next = earliest(next, due)
		return false
	}
	b.JWTAuthorities = slices.DeleteFunc(b.JWTAuthorities, func(a registry.JWTAuthority) bool { return expired(a.ExpiresAt) })
	b.WITAuthorities = slices.DeleteFunc(b.WITAuthorities, func(a registry.WITAuthority) bool { return expired(a.ExpiresAt) })
	return next
}

func (f jwtFamily) arm(m *member) (*signer, error) {
	issuer, err := svid.NewJWTIssuer(f.cfg.TrustDomain, m.id, m.public, f.cfg.JWTIssuer, m.issuedAt.Add(-backdate), m.notAfter)
	if err != nil {
		return nil, err
	}
	return &signer{member: m, jwt: issuer}, nil
}
