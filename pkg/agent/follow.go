package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
	// refusedMax takes its place when the server's answer was no, or another
	// agent wants to be this one.
	refusedMax = time.Minute
	// contestedLife is how soon an SVID is taken to have been taken over: longer
	// than two agents that take turns wait.
	contestedLife = 5 * refusedMax
)

// errRenewed ends a session whose SVID has a successor.
var errRenewed = errors.New("the agent's SVID was renewed")

// fatalError ends Run; every other error is tried again.
type fatalError struct{ error }

func (e fatalError) Unwrap() error { return e.error }

func fatal(err error) error { return fatalError{err} }

// follow keeps the agent attested and its cache in sync until ctx ends or the
// server refuses it for good.
func (a *Agent) follow(ctx context.Context) error {
	var backoff backoff
	var distrust distrust
	tried := 0 // servers, since the last pause
	for {
		start := time.Now()
		err := a.session(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errRenewed) {
			continue // still in sync, for the moment it takes to connect anew
		}
		worked := a.connected.Swap(false)
		if worked {
			a.lost(time.Now())
		}
		own := a.identity.current.Load()
		if err = a.judge(ctx, err); errors.As(err, new(fatalError)) {
			return err
		}
		takenOver := contested(err, own, time.Now())
		if takenOver {
			a.log.WarnContext(ctx, "the agent's SVID was good for a short time only: does another agent attest with the same evidence, such as on a copy of this machine?",
				telemetry.AgentID, own.ID)
		}
		if distrust.rebootstrap(time.Now(), a.config.Agent, a.identity.current.Load(), err) {
			a.log.WarnContext(ctx, "the server cannot be verified for too long: bootstrapping anew, as rebootstrap_mode says", telemetry.Err, err)
			a.trust.current.Store(nil)
		}
		server := a.server()
		pause, more := a.hurry(err, worked, &tried)
		if !more {
			pause = a.pause(backoff.next(err, worked || time.Since(start) > backoffMax, takenOver))
		}
		a.log.WarnContext(ctx, "not connected to the server", telemetry.Address, server, telemetry.Err, err, telemetry.Retry, pause)
		a.away(ctx, err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backoff is how long to wait before the next session.
type backoff struct{ wait time.Duration }

// next is the wait after a session that ended with err. It begins anew after one
// that worked, unless that was because two agents keep taking the SVID from each
// other: neither of them would ever wait.
func (b *backoff) next(err error, worked, contested bool) time.Duration {
	if b.wait == 0 || worked && !contested {
		b.wait = backoffFirst
	}
	wait := b.wait
	b.wait = min(wait*2, longest(err))
	if contested {
		b.wait = min(wait*2, refusedMax)
	}
	return wait
}

// contested says whether the SVID was taken over by another agent, soon after
// the server gave it.
func contested(err error, own *nodeSVID, now time.Time) bool {
	reason, _ := refusal(err)
	return reason == types.PermissionDeniedDetails_AGENT_NOT_ACTIVE && own != nil && now.Sub(own.taken) < contestedLife
}

// longest is the longest pause before the next attempt after this error.
func longest(err error) time.Duration {
	if errors.Is(err, ErrRefused) {
		return refusedMax
	}
	return backoffMax
}

// pause is about wait, and never so long that the agent's own SVID expires in
// the middle of it: with an expired one it would have to attest anew.
func (a *Agent) pause(wait time.Duration) time.Duration {
	pause := wait/2 + rand.N(wait) //nolint:gosec // only spreads the attempts
	if own := a.identity.current.Load(); own != nil {
		pause = min(pause, max(time.Until(own.notAfter())/4, backoffFirst))
	}
	return pause
}

// distrust is how long the server could not be verified.
type distrust struct{ since time.Time }

// rebootstrap says whether what is known of the server's authorities is to be
// given up for what the configuration names, by rebootstrap_mode: auto is for
// agents that could attest again too.
func (d *distrust) rebootstrap(now time.Time, s Section, own *nodeSVID, err error) bool {
	if !errors.Is(err, errUntrusted) {
		d.since = time.Time{}
		return false
	}
	if d.since.IsZero() {
		d.since = now
	}
	may := s.RebootstrapMode == rebootstrapAlways || (s.RebootstrapMode == rebootstrapAuto && own != nil && own.reattestable)
	if !may || now.Sub(d.since) < s.RebootstrapDelay {
		return false
	}
	d.since = time.Time{}
	return true
}

// session attests if need be, connects, and follows the server until the
// connection is lost or its SVID is renewed. It never returns nil.
func (a *Agent) session(ctx context.Context) error {
	a.caughtUp.Store(false)
	if err := a.bootstrap(ctx); err != nil {
		return err
	}
	if err := a.ensureAttested(ctx); err != nil {
		return err
	}
	own := a.identity.current.Load()
	l, err := a.dial(ctx, own)
	if err != nil {
		return a.attestIfRevoked(ctx, own, err)
	}
	a.replaceLink(ctx, l)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	renewed := make(chan struct{})
	a.background.Go(func() {
		defer close(renewed)
		if err := a.renewOnTime(ctx, own); err != nil {
			cancel(err)
		}
	})
	err = a.followOn(ctx, own, l)
	cancel(nil)
	<-renewed
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if _, refused := refusal(err); refused && a.identity.current.Load() != own {
		return errRenewed // what was refused is no longer in use
	}
	return err
}

// renewOnTime waits for the SVID's half-life, or for its authority to be tainted,
// and gets the next one. It returns errRenewed when there is one, or what only a
// new session can mend.
func (a *Agent) renewOnTime(ctx context.Context, own *nodeSVID) error {
	at, wait := a.renewalTime(own, time.Now()), backoffFirst
	for {
		select {
		case <-time.After(time.Until(at)):
		case <-a.trust.news:
			if sooner := a.renewalTime(own, time.Now()); sooner.Before(at) {
				a.log.InfoContext(ctx, "the authority of the agent's SVID is tainted: renewing it", telemetry.NotAfter, own.notAfter())
				at = sooner
			}
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		err := a.nextSVID(ctx, own)
		if err == nil {
			a.log.InfoContext(ctx, "renewed the agent's SVID", telemetry.NotAfter, a.identity.current.Load().notAfter())
			return errRenewed
		}
		if _, refused := refusal(err); refused || ctx.Err() != nil {
			return err
		}
		a.log.WarnContext(ctx, "renewing the agent's SVID", telemetry.Err, err, telemetry.NotAfter, own.notAfter())
		at = time.Now().Add(wait/2 + rand.N(wait)) //nolint:gosec // only spreads the attempts
		wait = min(wait*2, longest(err))
	}
}

const (
	// taintedSpread is over how long agents spread the renewal of SVIDs whose
	// authority was tainted.
	taintedSpread = 200 * time.Millisecond
	// taintedPause is before the next attempt when the server has signed with an
	// authority that was tainted already.
	taintedPause = 15 * time.Second
)

// renewalTime is when the SVID is to be renewed, by what is known now.
func (a *Agent) renewalTime(own *nodeSVID, now time.Time) time.Time {
	since, tainted := a.trust.distrusts(own.Certificates)
	if !tainted {
		return own.renewAt
	}
	at := now.Add(rand.N(taintedSpread)) //nolint:gosec // only spreads the renewals
	if own.taken.After(since) {
		at = own.taken.Add(taintedPause)
	}
	if at.After(own.renewAt) {
		return own.renewAt
	}
	return at
}

func (a *Agent) nextSVID(ctx context.Context, own *nodeSVID) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if own.reattestable {
		return a.attest(ctx)
	}
	err := (*minter)(a).call(ctx, a.identity.renew)
	if reason, _ := refusal(err); reason == types.PermissionDeniedDetails_AGENT_MUST_REATTEST {
		return a.attest(ctx) // the SVID in use is good until there is another
	}
	return err
}
