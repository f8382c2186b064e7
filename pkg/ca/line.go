package ca

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/registry"
)

// Line is the authorities of one kind that one server has had, one after the
// other, for operators to see and to act on. What an operator does is the same
// step that the schedule would take, under the same invariants, and the schedule
// goes on from where it leads. All methods may be called concurrently. Those
// that take an ID return a [*Refusal] when the step is not allowed, ErrNotReady
// before Start, and the error of the store or the key manager; after the latter
// it is not known whether the step was taken.
type Line struct {
	r *rotor
	a *Authority
}

// X509 is the X.509 authorities.
func (a *Authority) X509() Line { return Line{r: a.x509, a: a} }

// JWT is the JWT authorities.
func (a *Authority) JWT() Line { return Line{r: a.jwt, a: a} }

// View is one authority as operators see it.
type View struct {
	// ID is the hex subject key ID (X.509), or the key ID (JWT).
	ID string
	// State is "prepared", "active" or "old".
	State string
	// IssuedAt and NotAfter are UTC.
	IssuedAt, NotAfter time.Time
	// HasKey says whether this server can still sign with it.
	HasKey bool
	// Tainted and Revoked say what an operator did with it.
	Tainted, Revoked bool
}

func (m *member) view() View {
	return View{
		ID:       m.id,
		State:    strings.ToLower(stateName(m)),
		IssuedAt: m.issuedAt,
		NotAfter: m.notAfter,
		HasKey:   m.key != nil,
		Tainted:  m.tainted,
		Revoked:  m.revoked,
	}
}

func stateName(m *member) string { return strings.TrimPrefix(m.state.String(), "STATE_") }

// State returns the authorities that are in use, or that what is still valid
// was signed by, the newest first.
func (l Line) State() []View {
	if v := l.r.views.Load(); v != nil {
		return append([]View(nil), *v...)
	}
	return nil
}

// show renews what State returns.
func (r *rotor) show() {
	views := make([]View, 0, len(r.members))
	for _, m := range r.members {
		views = append(views, m.view())
	}
	r.views.Store(&views)
}

// Rule is what a step of an operator would have broken.
type Rule int

// The rules. The comment says which step each is of.
const (
	// KnownAuthority: no authority of this server has the ID (all steps).
	KnownAuthority Rule = iota
	// InState: the authority is not in the state that the step starts from (all
	// steps).
	InState
	// HasKey: its private key is gone (activate).
	HasKey
	// EnoughLife: it ends too soon for what it would sign (activate).
	EnoughLife
	// Published: it is not in the bundle (all steps).
	Published
	// NotYetTainted: it is tainted already (taint).
	NotYetTainted
	// Tainted: it is not tainted (revoke).
	Tainted
	// OwnerAway: it is of another server, which runs (taint, revoke).
	OwnerAway
)

// Refusal says why a step of an operator was not taken.
type Refusal struct {
	Rule Rule
	// State of the authority: PREPARED, ACTIVE or OLD; empty when there is no
	// such authority.
	State string

	text string
}

// Error names the rule, and what can be done.
func (e *Refusal) Error() string { return e.text }

func refuse(rule Rule, m *member, format string, args ...any) *Refusal {
	e := &Refusal{Rule: rule, text: fmt.Sprintf(format, args...)}
	if m != nil {
		e.State = stateName(m)
	}
	return e
}

// Prepare makes another authority and publishes it, in place of one that was
// prepared before and never signed. Old ones are kept, however many, so that an
// operator's rotations never end what is valid.
func (l Line) Prepare(ctx context.Context) (View, error) {
	return l.r.byHand(ctx, func(ctx context.Context, now time.Time) (*member, error) {
		if err := l.r.prepare(ctx, now, maxMembers); err != nil {
			return nil, err
		}
		return find(l.r.members, prepared), nil
	})
}

// Activate makes the prepared authority the one that signs, and the active one
// old.
func (l Line) Activate(ctx context.Context, id string) (View, error) {
	r := l.r
	var prep *member
	v, err := r.byHand(ctx, func(ctx context.Context, now time.Time) (*member, error) {
		var err error
		if prep, err = r.named(id, prepared); err != nil {
			return nil, err
		}
		if err := r.fit(prep, now); err != nil {
			return nil, err
		}
		if err := r.activate(ctx, now); err != nil {
			return nil, err
		}
		return find(r.members, active), nil
	})
	if errors.Is(err, errWithdrawn) {
		return View{}, unpublished(prep)
	}
	return v, err
}

func unpublished(m *member) *Refusal {
	return refuse(Published, m, "authority %s cannot be activated: it is not in the trust bundle; it is being published again, try again", m.id)
}

// fit says whether m, prepared, may be activated.
func (r *rotor) fit(m *member, now time.Time) error {
	switch left := m.notAfter.Sub(now); {
	case m.key == nil:
		return refuse(HasKey, m, "authority %s cannot be activated: its private key is gone; prepare another", m.id)
	case left < r.required() || !m.usable(now):
		return refuse(EnoughLife, m, "authority %s cannot be activated: it has %s left, and needs %s for what it would sign; prepare another",
			m.id, max(0, left.Truncate(time.Second)), r.required())
	case !r.inBundle(m):
		return unpublished(m)
	}
	return nil
}

// Taint marks an old authority, in the bundle, as one that must not be relied
// on: whoever holds an SVID of it gets another at once. One of another server
// can be tainted while that one does not run, in any state.
func (l Line) Taint(ctx context.Context, id string) (View, error) {
	r := l.r
	edit := func(b *registry.Bundle, m *member) error {
		flag := r.taint(b, m)
		switch {
		case flag == nil:
			return refuse(Published, m, "authority %s is not in the trust bundle any more", m.id)
		case *flag:
			return refuse(NotYetTainted, m, "authority %s is tainted already", m.id)
		}
		*flag = true
		m.tainted = true
		return nil
	}
	v, err := r.withdrawn(ctx, id, edit)
	if isRule(err, KnownAuthority) {
		v, err = l.gone(ctx, id, edit)
	}
	if err == nil {
		n, dropped := l.outstanding(id)
		r.log.Warn("authority: tainted by an operator, everything it signed is being replaced",
			keyAuthority, id, keyOutstanding, n, keyDropped, dropped)
	}
	return v, err
}

// Revoke removes an authority that is old and tainted from the bundle: what it
// signed does not verify any more. One of another server can be revoked while
// that one does not run, and a tainted JWT authority at any time.
func (l Line) Revoke(ctx context.Context, id string) (View, error) {
	r := l.r
	edit := func(b *registry.Bundle, m *member) error {
		flag := r.taint(b, m)
		switch {
		case flag == nil:
			return refuse(Published, m, "authority %s is not in the trust bundle any more", m.id)
		case !*flag:
			return refuse(Tainted, m, "authority %s is not tainted: taint it first, so that what it signed is replaced", m.id)
		}
		r.withdraw(b, m)
		m.tainted, m.revoked = true, true
		return nil
	}
	v, err := r.withdrawn(ctx, id, edit)
	if isRule(err, KnownAuthority) {
		v, err = l.gone(ctx, id, edit)
	}
	if r == l.a.jwt && (isRule(err, KnownAuthority) || isRule(err, OwnerAway)) {
		v, err = r.strike(ctx, id)
	}
	if err == nil {
		n, dropped := l.outstanding(id)
		r.log.Warn("authority: revoked by an operator, nothing it signed verifies any more",
			keyAuthority, id, keyOutstanding, n, keyDropped, dropped)
	}
	return v, err
}

// strike removes a tainted authority of another server from the bundle.
func (r *rotor) strike(ctx context.Context, id string) (View, error) {
	return r.byHand(ctx, func(ctx context.Context, now time.Time) (*member, error) {
		other := &member{id: id, state: old, tainted: true, revoked: true}
		return other, r.commit(ctx, change{now: now, to: r.members, edit: func(b *registry.Bundle) error {
			flag := r.taint(b, other)
			switch {
			case flag == nil:
				return refuse(KnownAuthority, nil, "there is no authority with the ID %q", id)
			case !*flag:
				return refuse(Tainted, other, "authority %s is not tainted: its server must taint it first", id)
			}
			r.withdraw(b, other)
			return nil
		}})
	})
}

// outstanding is how many unexpired SVIDs of an authority are known, those that
// were replaced since among them, and how many records were dropped.
func (l Line) outstanding(id string) (n int, dropped uint64) {
	found, dropped := l.a.Issued(time.Now(), func(i Issued) bool { return i.AuthorityID == id })
	return len(found), dropped
}

// withdrawn commits a change to an old authority and to its place in the bundle.
// edit is given a copy of the member, and may run again.
func (r *rotor) withdrawn(ctx context.Context, id string, edit func(*registry.Bundle, *member) error) (View, error) {
	return r.byHand(ctx, func(ctx context.Context, now time.Time) (*member, error) {
		m, err := r.named(id, old)
		if err != nil {
			return nil, err
		}
		changed := m.with(old)
		c := change{now: now, edit: func(b *registry.Bundle) error { return edit(b, changed) }}
		for _, o := range r.members {
			if o == m {
				o = changed
			}
			c.to = append(c.to, o)
		}
		return changed, r.commit(ctx, c)
	})
}

// named returns the authority with the ID, which must be in the state.
func (r *rotor) named(id string, state authorityState) (*member, error) {
	for _, m := range r.members {
		switch {
		case m.id != id:
		case m.state != state:
			return nil, refuse(InState, m, "authority %s is %s", id, strings.ToLower(stateName(m)))
		default:
			return m, nil
		}
	}
	return nil, refuse(KnownAuthority, nil, "no authority of this server has the ID %q", id)
}

// byHand takes one step that the schedule did not ask for, and has the schedule
// begin anew from there.
func (r *rotor) byHand(ctx context.Context, step func(context.Context, time.Time) (*member, error)) (View, error) {
	release, err := r.hold(ctx)
	if err != nil {
		return View{}, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, maxSettle)
	defer cancel()
	if !r.loaded {
		if err := r.load(ctx); err != nil {
			return View{}, fmt.Errorf("loading the %s authorities: %w", r.name(), err)
		}
	}
	defer r.poke()
	if find(r.members, active) == nil {
		return View{}, fmt.Errorf("%s %w: no key is active", r.name(), ErrNotReady)
	}
	m, err := step(ctx, time.Now())
	if err == nil {
		return m.view(), nil
	}
	if _, ok := errors.AsType[*Refusal](err); !ok {
		r.loaded = false // whether it was committed is not known
	}
	return View{}, err
}
