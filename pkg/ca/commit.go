package ca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// change is what one commit does to the journal and the bundle.
type change struct {
	now time.Time
	// to is the family's members afterwards.
	to []*member
	// check, if set, must have been in the bundle before.
	check *member
	// edit, if set, changes the bundle first, or refuses; it may run again.
	edit func(*registry.Bundle) error
	// drop is withdrawn from the bundle.
	drop []*member
	// sweep removes from the bundle what expired, whoever put it there.
	sweep bool
}

// remove drops a member.
func (c *change) remove(m *member) {
	var kept []*member
	for _, o := range c.to {
		if o != m {
			kept = append(kept, o)
		}
	}
	c.to, c.drop = kept, append(c.drop, m)
}

// commit writes the change, reads the bundle back and lets the active authority
// sign if it is in there.
func (r *rotor) commit(ctx context.Context, c change) error {
	_, _, err := r.cfg.Registry.UpdateAuthorities(ctx, r.cfg.ServerID, func(b *registry.Bundle, j *recordv1.Journal) error {
		list := r.journal(j)
		if !sameAuthorities(*list, r.members) {
			return errForeign
		}
		if c.check != nil && !r.published(b, c.check) {
			return errWithdrawn
		}
		if c.edit != nil {
			if err := c.edit(b); err != nil {
				return err
			}
		}
		for _, m := range c.drop {
			r.withdraw(b, m)
		}
		records := make([]*recordv1.JournaledAuthority, 0, len(c.to))
		for _, m := range c.to {
			records = append(records, m.record())
			if m.state != old && m.key != nil && !r.published(b, m) {
				r.publish(b, m)
			}
		}
		if c.sweep {
			r.sweep(b, c.now)
		}
		*list = records
		return nil
	})
	if err != nil {
		return err
	}
	r.members = c.to
	for _, m := range c.to {
		if !m.signedUntil.IsZero() {
			m.ledger.journaled.Store(m.signedUntil.Unix())
		}
	}
	r.show()
	return r.readBack(ctx)
}

// sameAuthorities compares by id, slot, state and what an operator did.
func sameAuthorities(records []*recordv1.JournaledAuthority, members []*member) bool {
	if len(records) != len(members) {
		return false
	}
	for i, m := range members {
		r := records[i]
		if r.GetAuthorityId() != m.id || r.GetSlot() != m.slot || r.GetState() != m.state ||
			r.GetTainted() != m.tainted || r.GetRevoked() != m.revoked {
			return false
		}
	}
	return true
}

// load builds the members from the journal and the key manager.
func (r *rotor) load(ctx context.Context) error {
	j, err := r.cfg.Registry.LoadJournal(ctx, r.cfg.ServerID)
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	ledgers := map[string]*ledger{}
	for _, m := range r.members {
		ledgers[m.id] = m.ledger
	}
	var members []*member
	for _, record := range *r.journal(j) {
		m, err := r.recall(ctx, record)
		if err != nil {
			return err
		}
		if l, ok := ledgers[m.id]; ok {
			l.journaled.Store(m.ledger.journaled.Load())
			m.ledger = l
		}
		members = append(members, m)
	}
	r.members, r.loaded = members, true
	r.show()
	return r.readBack(ctx)
}

// recall restores a journaled authority and finds its private key, if that is
// still there: the slot may hold another key by now.
func (r *rotor) recall(ctx context.Context, record *recordv1.JournaledAuthority) (*member, error) {
	m, err := restore(record)
	if err != nil {
		r.log.Error("authority: journal is damaged, making a new authority", keyErr, err)
		return m, nil
	}
	if m.state == old {
		return m, nil
	}
	key, err := r.cfg.Keys.Get(ctx, m.slot)
	switch {
	case errors.Is(err, keys.ErrNotFound):
		r.bereaved(m, "the key manager does not have it")
		return m, nil
	case err != nil:
		return nil, fmt.Errorf("getting key %q: %w", m.slot, err)
	}
	public, ok := key.Signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(m.public) {
		r.bereaved(m, "the key manager has another in its place")
		return m, nil
	}
	if _, err := r.arm(m); err != nil {
		r.log.Error("authority: journal is damaged, making a new authority", keyErr, err)
		return m, nil
	}
	m.key = key.Signer
	return m, nil
}

// bereaved tells the operator of an authority that signed and has lost its key,
// unless keys are kept in memory: then it has, after every restart.
func (r *rotor) bereaved(m *member, reason string) {
	if m.state != active || !r.cfg.Keys.Durable() || !time.Now().Before(m.notAfter) {
		return
	}
	r.log.Warn("authority: private key of the active authority is gone, another authority takes its place; was the key manager's data removed or replaced? What was signed stays valid",
		keyAuthority, m.id, keySlot, m.slot, keyReason, reason, keyManager, r.cfg.Keys.Name())
}

// readBack reads the bundle from the store and takes note of it.
func (r *rotor) readBack(ctx context.Context) error {
	b, err := r.cfg.Registry.LoadBundle(ctx, r.cfg.TrustDomain)
	if errors.Is(err, registry.ErrNotFound) {
		b, err = &registry.Bundle{TrustDomain: r.cfg.TrustDomain}, nil
	}
	if err != nil {
		return fmt.Errorf("reading back the bundle: %w", err)
	}
	r.observe(b)
	return r.install()
}

// observe takes note of a bundle, unless a newer one is known.
func (r *rotor) observe(b *registry.Bundle) {
	r.seen.Lock()
	defer r.seen.Unlock()
	if b == nil {
		b = &registry.Bundle{TrustDomain: r.cfg.TrustDomain}
		if r.bundle != nil {
			b.ModRevision = r.bundle.ModRevision
		}
	}
	if r.bundle != nil && b.ModRevision < r.bundle.ModRevision {
		return
	}
	r.bundle = b
	copied := *b
	copied.X509Authorities = append([]registry.X509Authority(nil), b.X509Authorities...)
	copied.JWTAuthorities = append([]registry.JWTAuthority(nil), b.JWTAuthorities...)
	copied.WITAuthorities = append([]registry.WITAuthority(nil), b.WITAuthorities...)
	planned := r.sweepAt
	r.sweepAt = r.sweep(&copied, time.Time{})
	if !r.sweepAt.IsZero() && (planned.IsZero() || r.sweepAt.Before(planned)) {
		r.poke() // Another published what expires before the next step.
	}
	if s := r.signer.Load(); s != nil {
		gone := !r.published(b, s.member)
		if r.missing.Swap(gone) != gone {
			r.poke()
		}
	}
}

// inBundle says whether m is where it must be to sign: in the newest bundle
// seen. It is true for nil, and for one that cannot sign.
func (r *rotor) inBundle(m *member) bool {
	r.seen.Lock()
	defer r.seen.Unlock()
	return m == nil || m.key == nil || r.bundle != nil && r.published(r.bundle, m)
}

func (r *rotor) sweepDue() time.Time {
	r.seen.Lock()
	defer r.seen.Unlock()
	return r.sweepAt
}

// install makes the active member the signer.
func (r *rotor) install() error {
	act := find(r.members, active)
	if act == nil || act.key == nil || r.off {
		return nil
	}
	if s := r.signer.Load(); s != nil && s.member.id == act.id {
		return nil
	}
	s, err := r.arm(act)
	if err != nil {
		return err
	}
	r.seen.Lock()
	defer r.seen.Unlock()
	r.missing.Store(!r.published(r.bundle, act))
	r.signer.Store(s)
	return nil
}
