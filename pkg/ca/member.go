package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// authorityState is the state of an authority, as journaled.
type authorityState = recordv1.JournaledAuthority_State

const (
	prepared = recordv1.JournaledAuthority_STATE_PREPARED
	active   = recordv1.JournaledAuthority_STATE_ACTIVE
	old      = recordv1.JournaledAuthority_STATE_OLD
)

// member is one authority of this server. It is not changed once made; a new
// state is a copy.
type member struct {
	state authorityState
	// id is the hex subject key ID (X.509) or the key ID (JWT).
	id   string
	slot string
	// issuedAt and notAfter are UTC, whole seconds.
	issuedAt, notAfter time.Time
	// signedUntil is a journaled upper bound of the exp of every token signed;
	// zero when none was, as far as the journal knows (JWT).
	signedUntil time.Time
	// tainted and revoked say what an operator did with it; only the old are.
	tainted, revoked bool

	public crypto.PublicKey
	pkix   []byte
	chain  []*x509.Certificate // X.509
	// key signs; nil when the private half is gone.
	key crypto.Signer
	// ledger is shared by all copies (JWT).
	ledger *ledger
}

// ledger is how far the tokens signed by one authority reach, in Unix seconds.
type ledger struct {
	// signed is the latest exp of this process.
	signed atomic.Int64
	// journaled is the member's signedUntil as committed.
	journaled atomic.Int64
}

// enter takes note of an exp and says whether the journal must learn of it.
func (l *ledger) enter(exp int64) bool {
	for {
		latest := l.signed.Load()
		if exp <= latest || l.signed.CompareAndSwap(latest, exp) {
			return exp > l.journaled.Load()
		}
	}
}

// with returns a copy in another state.
func (m *member) with(state authorityState) *member {
	c := *m
	c.state = state
	return &c
}

// usable says whether m can sign now.
func (m *member) usable(now time.Time) bool {
	return m.key != nil && now.Before(m.notAfter) && !now.Before(m.issuedAt.Add(-backdate))
}

// unrecorded says whether m signed beyond what the journal knows.
func (m *member) unrecorded() bool { return m.ledger.signed.Load() > m.ledger.journaled.Load() }

// record is m as the journal has it.
func (m *member) record() *recordv1.JournaledAuthority {
	r := &recordv1.JournaledAuthority{
		Slot:        m.slot,
		State:       m.state,
		AuthorityId: m.id,
		IssuedAt:    m.issuedAt.Unix(),
		NotAfter:    m.notAfter.Unix(),
		PublicKey:   m.pkix,
		Tainted:     m.tainted,
		Revoked:     m.revoked,
	}
	for _, c := range m.chain {
		r.Chain = append(r.Chain, c.Raw)
	}
	if !m.signedUntil.IsZero() {
		r.SignedUntil = m.signedUntil.Unix()
	}
	return r
}

// restore is the reverse of record; the key is looked up apart. A record that
// cannot be read gives a member that cannot sign and is forgotten in time, so
// that a damaged journal never keeps a server from starting.
func restore(r *recordv1.JournaledAuthority) (*member, error) {
	m := &member{
		state:    r.GetState(),
		id:       r.GetAuthorityId(),
		slot:     r.GetSlot(),
		issuedAt: time.Unix(r.GetIssuedAt(), 0).UTC(),
		notAfter: time.Unix(r.GetNotAfter(), 0).UTC(),
		pkix:     r.GetPublicKey(),
		tainted:  r.GetTainted(),
		revoked:  r.GetRevoked(),
		ledger:   new(ledger),
	}
	if s := r.GetSignedUntil(); s != 0 {
		m.signedUntil = time.Unix(s, 0).UTC()
		m.ledger.journaled.Store(s)
	}
	for _, der := range r.GetChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return m, fmt.Errorf("certificate of journaled authority %q: %w", m.id, err)
		}
		m.chain = append(m.chain, c)
	}
	public, err := x509.ParsePKIXPublicKey(m.pkix)
	if err != nil {
		return m, fmt.Errorf("public key of journaled authority %q: %w", m.id, err)
	}
	m.public = public
	return m, nil
}

// family is what differs between kinds of authorities; the state machine is
// one (see rotor).
type family interface {
	// name is "x509" or "jwt".
	name() string
	// slots are the ids of the keys in turn.
	slots() [2]string
	keyType() keys.Type
	// most is how many authorities one server has in the bundle, at least
	// three, unless the old ones are needed for longer than shortLife.
	most() int
	shortLife() time.Duration
	// create makes an authority, prepared, around a new key.
	create(now time.Time, key keys.Key) (*member, error)
	// journal is the family's part of a server's journal.
	journal(*recordv1.Journal) *[]*recordv1.JournaledAuthority
	// published says whether the public half is in the bundle.
	published(*registry.Bundle, *member) bool
	// publish adds the public half; withdraw removes it.
	publish(*registry.Bundle, *member)
	withdraw(*registry.Bundle, *member)
	// taint is where the bundle says whether m is tainted; nil when m is not
	// in it.
	taint(*registry.Bundle, *member) *bool
	// required is the life an authority must have left to sign.
	required() time.Duration
	// retire makes m old, which stops signing about now.
	retire(m *member, now time.Time) *member
	// mark returns m with its high-water mark raised over what it signed.
	mark(m *member) *member
	// keepUntil is when an old one's public half is not needed any more.
	keepUntil(*member) time.Time
	// sweep removes what has expired in the bundle, whoever put it there, and
	// returns when something will next.
	sweep(b *registry.Bundle, now time.Time) time.Time
	// arm builds what signs with m; it fails for an authority that breaks its
	// profile.
	arm(*member) (*signer, error)
}

// find returns the member in the state, or nil.
func find(members []*member, state authorityState) *member {
	for _, m := range members {
		if m.state == state {
			return m
		}
	}
	return nil
}

// olds returns the old members, the one to be dropped first in front: one that
// is revoked verifies nothing any more.
func olds(f family, members []*member) []*member {
	var out []*member
	for _, m := range members {
		if m.state == old {
			out = append(out, m)
		}
	}
	slices.SortStableFunc(out, func(a, b *member) int {
		switch {
		case a.revoked && !b.revoked:
			return -1
		case b.revoked && !a.revoked:
			return 1
		}
		return f.keepUntil(a).Compare(f.keepUntil(b))
	})
	return out
}
