package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
)

// maxSteps is how many steps may be due at once; more are a contradiction.
const maxSteps = 16

// maxSettle is how long they may take: a store or a key manager that hangs is
// asked again, with what is in the journal then.
const maxSettle = time.Minute

// maxMembers bounds the authorities of one kind, whatever they signed; it is far
// beyond what rotations need.
const maxMembers = 64

// Bounds of the wait after a failed step, and after one that found the journal
// changed by another process.
const (
	minRetry    = 100 * time.Millisecond
	maxRetry    = 30 * time.Second
	minConflict = time.Minute
	maxConflict = time.Hour
)

// errForeign is returned when the journal is not what this process left there.
var errForeign = errors.New("journal was changed by someone else: is another server running with this server ID?")

// errWithdrawn is returned when an authority to be activated is not in the
// bundle any more.
var errWithdrawn = errors.New("authority to be activated is not in the bundle")

// rotor is the state machine of one kind of authority.
type rotor struct {
	family
	cfg *Config
	log *slog.Logger
	// off says that there is to be no authority of this kind.
	off bool

	// step has a value while a goroutine may read and change what follows,
	// see hold. Issuing never takes it.
	step chan struct{}
	// members is the journal as last committed or loaded; nil before the
	// first load, and after a commit whose outcome is not known.
	members []*member
	loaded  bool
	views   atomic.Pointer[[]View]

	// seen guards bundle, sweepAt and, for writing, signer and missing. It is
	// held for memory operations only.
	seen    sync.Mutex
	bundle  *registry.Bundle
	sweepAt time.Time

	// signer is what signs; nil before there is one. missing says that its
	// public half is not in the newest bundle seen, so that it must not.
	signer  atomic.Pointer[signer]
	missing atomic.Bool
	// due is when the next step is to be taken, in Unix nanoseconds, for those
	// who issue to notice when the timer does not: a machine that slept.
	due atomic.Int64
	// wake holds at most one call to take a step now.
	wake chan struct{}
}

func newRotor(f family, cfg *Config) *rotor {
	return &rotor{family: f, cfg: cfg, log: cfg.Logger.With(keyKind, f.name()), wake: make(chan struct{}, 1), step: make(chan struct{}, 1)}
}

// hold waits for its turn to take steps and returns what ends it.
func (r *rotor) hold(ctx context.Context) (release func(), err error) {
	select {
	case r.step <- struct{}{}:
		return func() { <-r.step }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another step of the %s authority: %w", r.name(), ctx.Err())
	}
}

// poke makes run take a step soon.
func (r *rotor) poke() {
	select {
	case r.wake <- struct{}{}:
	default: // one is waiting already
	}
}

// run takes steps on time until ctx ends. A failed one is tried again with
// growing pauses, meanwhile the signer that is there goes on.
func (r *rotor) run(ctx context.Context) error {
	var failures, conflicts int
	for {
		next, err := r.settle(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wake, wait := r.wake, time.Until(next)
		switch {
		case err == nil:
			failures = 0
		case errors.Is(err, errForeign):
			// Two processes that undo each other's steps: give way, ever longer.
			wake, wait = nil, pause(conflicts, minConflict, maxConflict)
			conflicts++
		default:
			wake, wait = nil, pause(failures, minRetry, maxRetry)
			failures++
		}
		if err != nil {
			r.complain(ctx, err, wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-wake:
		}
		timer.Stop()
	}
}

func (r *rotor) complain(ctx context.Context, err error, wait time.Duration) {
	level := slog.LevelWarn
	if s := r.signer.Load(); s == nil || r.missing.Load() || !s.member.usable(time.Now()) {
		level = slog.LevelError
	}
	r.log.Log(ctx, level, "authority: step not taken", keyErr, err, keyRetry, wait)
}

// pause doubles with every failure, between bounds, less a jitter of up to half.
func pause(failures int, least, most time.Duration) time.Duration {
	d := min(least<<min(failures, 16), most)
	return d/2 + rand.N(d/2) //nolint:gosec // jitter, not a secret
}

// settle takes every step that is due and returns when the next one is.
func (r *rotor) settle(ctx context.Context) (time.Time, error) {
	release, err := r.hold(ctx)
	if err != nil {
		return time.Time{}, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, maxSettle)
	defer cancel()
	for range maxSteps {
		if !r.loaded {
			if err := r.load(ctx); err != nil {
				return time.Time{}, fmt.Errorf("loading the %s authorities: %w", r.name(), err)
			}
		}
		now := time.Now()
		p := r.plan(now)
		if p.what == wait {
			r.due.Store(p.at.UnixNano())
			return p.at, nil
		}
		r.due.Store(now.UnixNano())
		if err := r.take(ctx, now, p.what); err != nil {
			r.loaded = false // whether it was committed is not known
			if errors.Is(err, errWithdrawn) {
				continue // publish it first
			}
			return time.Time{}, fmt.Errorf("%s the %s authority: %w", p.what, r.name(), err)
		}
	}
	return time.Time{}, fmt.Errorf("the %s authority does not settle: is something else removing it from the bundle?", r.name())
}

// action is one step of the state machine.
type action int

const (
	wait action = iota
	publish
	prepare
	activate
	mark
	prune
	retire
)

var actions = map[action]string{
	wait: "waiting for", publish: "publishing", prepare: "preparing", activate: "activating", mark: "marking", prune: "pruning",
	retire: "retiring",
}

func (a action) String() string { return actions[a] }

type plan struct {
	what action
	// at is when to plan again (wait).
	at time.Time
}

// plan decides the next step.
func (r *rotor) plan(now time.Time) plan {
	act, prep := find(r.members, active), find(r.members, prepared)
	if r.off {
		if act != nil || prep != nil {
			return plan{what: retire}
		}
		return r.planCleaning(now, now.Add(idle))
	}
	ready := prep != nil && prep.usable(now) && prep.notAfter.Sub(now) >= r.required()
	if !r.inBundle(act) || !r.inBundle(prep) {
		return plan{what: publish}
	}
	if act == nil || !act.usable(now) {
		return plan{what: pick(ready, activate, prepare)}
	}
	prepareAt, activateAt := r.schedule(act)
	if !now.Before(activateAt) {
		return plan{what: pick(ready, activate, prepare)}
	}
	ready = ready && !r.stale(prep, prepareAt, activateAt)
	if !now.Before(prepareAt) && !ready {
		return plan{what: prepare}
	}
	next := activateAt
	if !ready {
		next = prepareAt
	}
	return r.planCleaning(now, next)
}

// idle is how long nothing is looked at when nothing is ever due.
const idle = 24 * time.Hour

// stale says whether a prepared authority, made by hand before the schedule
// would have, would need a successor by the time it is to be activated: then it
// is made again when the schedule says prepare, early enough to be known to all
// when it signs.
func (r *rotor) stale(prep *member, prepareAt, activateAt time.Time) bool {
	again, _ := r.schedule(prep)
	return prep.issuedAt.Before(prepareAt.Truncate(time.Second)) && !again.After(activateAt)
}

// planCleaning plans what is due beside the rotation, whose next step is at
// next.
func (r *rotor) planCleaning(now, next time.Time) plan {
	for _, m := range r.members {
		if m.unrecorded() {
			return plan{what: mark}
		}
		if m.state == old {
			next = earliest(next, r.keepUntil(m))
		}
	}
	next = earliest(next, r.sweepDue())
	if !now.Before(next) {
		return plan{what: prune}
	}
	return plan{what: wait, at: next}
}

func pick(ready bool, yes, no action) action {
	if ready {
		return yes
	}
	return no
}

// schedule is svid's, but early enough that the active authority always has the
// required life left.
func (r *rotor) schedule(m *member) (prepareAt, activateAt time.Time) {
	prepareAt, activateAt = svid.PrepareAt(m.issuedAt, m.notAfter), svid.ActivateAt(m.issuedAt, m.notAfter)
	return prepareAt, earliest(activateAt, m.notAfter.Add(-r.required()))
}

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
