package ca

import (
	"context"
	"fmt"
	"time"
)

// take carries a step out.
func (r *rotor) take(ctx context.Context, now time.Time, what action) error {
	switch what {
	case publish:
		r.log.Warn("authority: not in the bundle, publishing it again", keyServer, r.cfg.ServerID)
		return r.commit(ctx, change{to: r.members, now: now})
	case prepare:
		return r.prepare(ctx, now, r.most())
	case activate:
		return r.activate(ctx, now)
	case mark:
		return r.mark(ctx, now)
	case prune:
		return r.prune(ctx, now)
	case retire:
		return r.retireAll(ctx, now)
	default:
		return fmt.Errorf("no step %d", what)
	}
}

// prepare makes a key and its public half, and publishes that. There are at most
// so many authorities afterwards, see bound.
func (r *rotor) prepare(ctx context.Context, now time.Time, most int) error {
	slot := r.slots()[0]
	if act := find(r.members, active); act != nil && act.key != nil && act.slot == slot {
		slot = r.slots()[1]
	}
	key, err := r.cfg.Keys.Generate(ctx, slot, r.keyType())
	if err != nil {
		return fmt.Errorf("generating key %q: %w", slot, err)
	}
	m, err := r.create(now, key)
	if err != nil {
		return err
	}
	c := change{now: now, to: []*member{m}}
	for _, o := range r.members {
		switch {
		case o.state == prepared: // never signed
			c.drop = append(c.drop, o)
		case o.state == active && !o.usable(now):
			c.to = append(c.to, r.retired(o, now))
		case o.state == active || o.state == old:
			c.to = append(c.to, o)
		}
	}
	r.bound(&c, most)
	if err := r.commit(ctx, c); err != nil {
		return err
	}
	r.log.Info("authority: prepared", keyAuthority, m.id, keySlot, m.slot, keyNotAfter, m.notAfter)
	return nil
}

// retired is m as an old authority, which never signs again.
func (r *rotor) retired(m *member, now time.Time) *member {
	m = r.retire(m, now)
	m.key = nil
	return m
}

// bound keeps the bundle small when a server with keys in memory restarts again
// and again: what such a server signed some restarts ago stops verifying, but
// for tokens that were given a long life.
func (r *rotor) bound(c *change, most int) {
	for len(c.to) > most {
		first := r.expendable(c)
		if first == nil {
			return
		}
		if c.now.Before(r.keepUntil(first)) && !first.revoked {
			r.log.Warn("authority: too many restarts in a short time, dropping an old key before its time: use a key manager that keeps keys",
				keyAuthority, first.id)
		}
		c.remove(first)
	}
}

// expendable returns the old authority to be dropped first, or nil.
func (r *rotor) expendable(c *change) *member {
	for _, m := range olds(r.family, c.to) {
		if len(c.to) > maxMembers || m.revoked || !r.keepUntil(m).After(c.now.Add(r.shortLife())) {
			return m
		}
	}
	return nil
}

// activate makes the prepared authority the one that signs. That it was in the
// bundle before is checked by the commit.
func (r *rotor) activate(ctx context.Context, now time.Time) error {
	prep, prev := find(r.members, prepared), find(r.members, active)
	next := prep.with(active)
	c := change{now: now, check: next}
	for _, m := range r.members {
		switch m {
		case prep:
			m = next
		case prev:
			m = r.retired(prev, now)
		}
		c.to = append(c.to, m)
	}
	if err := r.commit(ctx, c); err != nil {
		return err
	}
	r.log.Info("authority: activated", keyAuthority, next.id, keySlot, next.slot, keyNotAfter, next.notAfter)
	if prev != nil && prev.key != nil {
		if err := r.cfg.Keys.Delete(ctx, prev.slot); err != nil {
			r.log.Warn("authority: private key of the old authority is not deleted", keyErr, err, keySlot, prev.slot)
		}
	}
	return nil
}

// mark journals how long what was signed lives.
func (r *rotor) mark(ctx context.Context, now time.Time) error {
	c := change{now: now}
	for _, m := range r.members {
		if m.unrecorded() {
			m = r.family.mark(m)
		}
		c.to = append(c.to, m)
	}
	return r.commit(ctx, c)
}

// prune forgets what nothing depends on any more.
func (r *rotor) prune(ctx context.Context, now time.Time) error {
	c := change{now: now, sweep: true, to: r.members}
	for _, m := range olds(r.family, r.members) {
		if !now.Before(r.keepUntil(m)) {
			c.remove(m)
		}
	}
	if err := r.commit(ctx, c); err != nil {
		return err
	}
	for _, m := range c.drop {
		r.log.Info("authority: pruned", keyAuthority, m.id, keyNotAfter, m.notAfter)
	}
	return nil
}

// retireAll ends the signing of a kind that is switched off.
func (r *rotor) retireAll(ctx context.Context, now time.Time) error {
	c := change{now: now}
	for _, m := range r.members {
		switch m.state {
		case prepared: // never signed
			c.drop = append(c.drop, m)
			continue
		case active:
			m = r.retired(m, now)
		}
		c.to = append(c.to, m)
	}
	if err := r.commit(ctx, c); err != nil {
		return err
	}
	r.log.Info("authority: switched off, what it signed stays valid")
	for _, slot := range r.slots() {
		if err := r.cfg.Keys.Delete(ctx, slot); err != nil {
			r.log.Warn("authority: private key of the old authority is not deleted", keyErr, err, keySlot, slot)
		}
	}
	return nil
}
