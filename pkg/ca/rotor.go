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
