package ca

import (
	"time"

	"github.com/credence-id/credence/pkg/svid"
)

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
