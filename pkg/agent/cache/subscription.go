package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/attest"
)

// Subscription follows what a workload with certain selectors may have. It is
// used by one goroutine at a time.
type Subscription struct {
	c       *Cache
	view    *view
	seen    *sight
	demands bool
	closed  bool
}

// Subscribe follows what a workload with these selectors may have, from now
// until Close. The selectors must not be changed. X509-SVIDs that are not kept
// warm are minted once AwaitSVIDs is called.
func (c *Cache) Subscribe(selectors attest.Selectors) *Subscription {
	selectors = sorted(selectors)
	c.mu.Lock()
	defer c.mu.Unlock()
	return &Subscription{c: c, view: c.acquire(selectors)}
}

// Close ends the subscription; Changed never fires afterwards.
func (s *Subscription) Close() {
	if s.closed {
		return
	}
	s.closed = true
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.demands {
		if s.view.demand--; s.view.demand == 0 {
			s.c.undemand(s.view.grantee)
		}
	}
	s.c.relinquish(s.view)
	s.c.settled(time.Now())
}

// Latest returns what the workload may have now.
func (s *Subscription) Latest() *Grant {
	s.seen = s.view.now.Load()
	if now := time.Now(); s.seen.grant.expired(now) {
		// The timers have not come to it: the clock was set, or the machine slept.
		s.c.tick(now)
		s.seen = s.view.now.Load()
	}
	return s.seen.grant
}

// Changed is closed when there may be more to see than what Latest returned
// last.
func (s *Subscription) Changed() <-chan struct{} {
	if s.seen == nil {
		s.Latest()
	}
	return s.seen.changed
}

// AwaitSVIDs returns what the workload may have once its X509-SVIDs are minted,
// and keeps them fresh from then on. It waits for the first sync with the server
// and for the first attempt to mint, at most 10 s in all; then it returns what
// there is. The error is ErrNoIdentity, ErrUnavailable with the reason, or the
// context's.
func (s *Subscription) AwaitSVIDs(ctx context.Context) (*Grant, error) {
	if !s.demands {
		s.demands = true
		s.c.mu.Lock()
		if s.view.demand++; s.view.demand == 1 {
			s.c.demand(s.view.grantee)
			s.c.settled(time.Now())
		}
		s.c.mu.Unlock()
	}
	return s.await(ctx, func(g *Grant, p *phase, o occasion) (bool, error) {
		switch {
		case p.synced && g.Matched == 0:
			return true, ErrNoIdentity
		case p.synced && g.Bundle != nil && g.settled():
			return true, g.unavailable(p)
		case o >= late && g.Bundle != nil && g.Matched > 0 && len(g.Identities) == g.Matched:
			return true, nil // of an earlier run, and the server does not answer
		case o == tooLate:
			return true, g.unavailable(p)
		}
		return false, nil
	})
}

// AwaitSync is AwaitSVIDs for those who want bundles only, and does not wait for
// SVIDs: it waits, as long, for the first sync with the server and for our own
// bundle. That nothing matches is no error. With ErrUnavailable the grant comes
// too: it may have the bundle of an earlier run.
func (s *Subscription) AwaitSync(ctx context.Context) (*Grant, error) {
	return s.await(ctx, func(g *Grant, p *phase, o occasion) (bool, error) {
		switch {
		case p.synced && (g.Bundle != nil || g.Matched == 0), o >= late && g.Bundle != nil && g.Matched > 0:
			return true, nil
		case o == tooLate:
			return true, notReady(p)
		}
		return false, nil
	})
}

// occasion is how long a caller has waited.
type occasion int

const (
	early   occasion = iota
	late             // long enough for what an earlier run left
	tooLate          // as long as it may
)

func (s *Subscription) await(ctx context.Context, enough func(*Grant, *phase, occasion) (bool, error)) (*Grant, error) {
	start := time.Now()
	var timer *time.Timer
	for {
		p, g := s.c.phase.Load(), s.Latest()
		o, next := waited(time.Since(start), p)
		if done, err := enough(g, p, o); done {
			return g, err
		}
		if timer == nil {
			timer = time.NewTimer(next)
			defer timer.Stop()
		} else {
			timer.Reset(next)
		}
		select {
		case <-s.Changed():
		case <-p.changed:
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// waited says what the time waited amounts to, and how long it does.
func waited(d time.Duration, p *phase) (occasion, time.Duration) {
	switch {
	case d >= maxWait:
		return tooLate, 0
	case d >= restoredWait || p.away != nil:
		return late, maxWait - d
	}
	return early, restoredWait - d
}

// unavailable is nil when there is an identity, else why there is none.
func (g *Grant) unavailable(p *phase) error {
	switch {
	case len(g.Identities) > 0 && g.Bundle != nil:
		return nil
	case g.failed != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, g.failed)
	}
	return notReady(p)
}

func notReady(p *phase) error {
	switch {
	case p.away != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, p.away)
	case !p.synced:
		return fmt.Errorf("%w: %w", ErrUnavailable, errNotSynced)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, errSlow)
}

var (
	errNotSynced = errors.New("the agent is not in sync with the server yet")
	errSlow      = errors.New("the server has not answered in time")
)
