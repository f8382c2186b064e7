package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// headWait bounds one question for the store's head.
	headWait = 5 * time.Second
	// strangersGap is between two looks at the store for the sake of strangers,
	// whose certificates this server cannot verify yet.
	strangersGap = 100 * time.Millisecond
	// strangersWait bounds the wait of one of them, in its handshake.
	strangersWait = 2 * time.Second
	// proofEvery is how often a server proves that its view of a store that
	// others keep is current, as agents do for the liveness of a connection; more
	// often if max_staleness is short.
	proofEvery = 10 * time.Second
	// proofAgain is the pause after a proof that failed.
	proofAgain = time.Second
)

// errReplaced ends a server whose store is not the one that it started with.
var errReplaced = errors.New("the store was replaced, or put back to an earlier revision, while this server ran: start the server again, and it takes up what is there now")

// freshness knows how far this server's view of the store can be trusted. All
// its methods may be called concurrently; Run is called once.
type freshness struct {
	store store.Store
	index *registry.Index
	log   *slog.Logger
	// limit is max_staleness.
	limit time.Duration
	// changed is told when the view becomes too old to act on, and when it is
	// not any more.
	changed func(stale bool)

	reads     *flights[sight]
	strangers *flights[sight]

	// proven is a time at which the view was current: all that was committed
	// before has been applied.
	proven atomic.Pointer[time.Time]
	// broken says that the log is not being followed.
	broken atomic.Bool
	// poke asks Run to look now.
	poke chan struct{}
	// replaced is closed, once, when the store is another one.
	replaced chan struct{}
	gone     atomic.Bool
}

// sight is the store's head, as asked for at a time.
type sight struct {
	asked time.Time
	head  store.Revision
}

func newFreshness(s store.Store, ix *registry.Index, limit time.Duration, log *slog.Logger, changed func(stale bool)) *freshness {
	f := &freshness{
		store: s, index: ix, log: log, limit: limit, changed: changed,
		poke: make(chan struct{}, 1), replaced: make(chan struct{}),
	}
	f.reads = newFlights(0, f.look)
	f.strangers = newFlights(strangersGap, f.look)
	f.note(time.Now())
	return f
}

// register shows how old the view may be.
func (f *freshness) register(reg prometheus.Registerer) error {
	return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "credence_server_staleness_seconds",
		Help: "Since when the server's view of a store that other processes keep is not proven to be current, in seconds; a proof is due every 10. Over max_staleness nothing is issued. Always 0 for a store in the server's own process.",
	}, func() float64 { return f.age(time.Now()).Seconds() }))
}

// wait returns once this server has applied all that was committed, by whomever,
// before the call, or an error that is store.ErrUnavailable.
func (f *freshness) wait(ctx context.Context) error { return f.reach(ctx, f.reads, indexWait) }

// waitForStranger is wait for the sake of somebody whom this server does not
// know: however many there are, the store is asked ten times a second at most.
func (f *freshness) waitForStranger(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, strangersWait)
	defer cancel()
	return f.reach(ctx, f.strangers, strangersWait)
}

func (f *freshness) reach(ctx context.Context, by *flights[sight], patience time.Duration) error {
	seen, err := by.get(ctx)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := f.index.WaitFor(waiting, seen.head); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: this server is at revision %d of %d", store.ErrUnavailable, f.index.Revision(), seen.head)
	}
	f.note(seen.asked)
	return nil
}

// look asks the store for its head.
func (f *freshness) look(ctx context.Context) (sight, error) {
	ctx, cancel := context.WithTimeout(ctx, min(headWait, f.every()))
	defer cancel()
	s, before := sight{asked: time.Now()}, f.index.Revision()
	var err error
	s.head, err = f.store.Head(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return s, fmt.Errorf("%w: its head could not be read for %v: %w", store.ErrUnavailable, time.Since(s.asked).Round(time.Millisecond), err)
	case err != nil:
		return s, fmt.Errorf("reading the store's head: %w", err)
	case s.head < before:
		f.fail()
		return s, fmt.Errorf("%w: %w", store.ErrUnavailable, errReplaced)
	}
	return s, nil
}

// fail says that the store is another one.
func (f *freshness) fail() {
	if !f.gone.Swap(true) {
		close(f.replaced)
	}
}

// note takes a time at which the view was current.
func (f *freshness) note(at time.Time) {
	for {
		last := f.proven.Load()
		if last != nil && !at.After(*last) || f.proven.CompareAndSwap(last, &at) {
			return
		}
	}
}

// follows notes whether the log is being followed.
func (f *freshness) follows(ok bool) {
	if f.broken.Swap(!ok) != ok {
		return // Nothing new.
	}
	if !f.store.Info().Remote {
		f.note(time.Now()) // Until now, or from now on, it was current.
	}
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// checked says whether proofs are needed. A store in this process hands over
// what it commits as it commits it: its view is current unless following broke.
func (f *freshness) checked() bool { return f.store.Info().Remote || f.broken.Load() }

// age is for how long the view may have been old at now; 0 while it needs no
// proof. A machine that slept makes it older.
func (f *freshness) age(now time.Time) time.Duration {
	if !f.checked() {
		return 0
	}
	at := *f.proven.Load()
	return max(0, now.Sub(at), now.Round(0).Sub(at.Round(0)))
}

// trusted refuses when the view is older than max_staleness: what was banned,
// deleted or revoked meanwhile is not known.
func (f *freshness) trusted(now time.Time) error {
	if f.age(now) <= f.limit {
		return nil
	}
	return rpcerr.New(codes.Unavailable, "this server has been cut off from the store for longer than max_staleness (%v) and cannot know who was banned: go to another server; this one serves again by itself once it reaches the store", f.limit)
}

// every is how often a proof is due.
func (f *freshness) every() time.Duration { return min(proofEvery, f.limit/4) }

// Run proves again and again that the view is current, and says when it is too
// old, and when it is not any more, until ctx ends. It returns errReplaced when
// the store is another one.
func (f *freshness) Run(ctx context.Context) error {
	if err := f.index.WaitFor(ctx, 0); err != nil {
		return err
	}
	var cut, stale bool
	for {
		next := f.every()
		if cut = f.check(ctx, cut); cut {
			next = min(next, proofAgain)
		}
		left := f.limit - f.age(time.Now())
		stale = f.judge(ctx, left < 0, stale)
		if !stale {
			next = min(next, left+time.Millisecond) // It is said on time.
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-f.replaced:
			timer.Stop()
			return errReplaced
		case <-f.poke:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// check tries to prove that the view is current, if that is needed, says so when
// it begins to fail and when it succeeds again, and returns whether it failed.
func (f *freshness) check(ctx context.Context, before bool) (cut bool) {
	if f.checked() {
		waiting, cancel := context.WithTimeout(ctx, f.every())
		defer cancel()
		err := f.wait(waiting)
		cut = err != nil
		if cut && !before && ctx.Err() == nil {
			f.log.WarnContext(ctx, "cut off from the store: reads and writes are refused, issuing goes on for max_staleness",
				telemetry.Err, err, telemetry.Limit, f.limit)
		}
	}
	if before && !cut {
		f.log.InfoContext(ctx, "the store is reached again", telemetry.Revision, uint64(f.index.Revision()))
	}
	return cut
}

// judge says when the view becomes too old to act on, and when it is not any
// more.
func (f *freshness) judge(ctx context.Context, now, before bool) bool {
	if now == before {
		return now
	}
	if now {
		f.log.ErrorContext(ctx, "cut off from the store for longer than max_staleness: nothing is issued to agents until it is reached again",
			telemetry.Limit, f.limit)
	}
	f.changed(now)
	return now
}
