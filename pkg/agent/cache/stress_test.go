package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/agent/feed"
)

// TestEverythingAtOnce is for the race detector: changes, resyncs, wipes,
// outages, workloads that come, follow and go, all at the same time. In the end
// everyone sees what the server has.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	const entries = 40
	s := cachetest.New(t, "example.org")
	c := newCache(t, s, func(cfg *cache.Config) { cfg.MaxX509SVIDs, cfg.MaxJWTSVIDs = 15, 20 })
	s.Sync(c)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { churnEntries(ctx, t, c, s, entries) })
	wg.Go(func() {
		for ctx.Err() == nil {
			s.SetDown(errAway)
			time.Sleep(rand.N(10 * time.Millisecond))
			s.SetDown(nil)
			time.Sleep(rand.N(30 * time.Millisecond))
			c.Snapshot(true)
			if b := c.Budget(time.Now()); b.Cold < 0 || b.Left < 0 {
				t.Errorf("budget is %+v", b)
			}
			c.Away(errAway)
		}
	})
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				value := fmt.Sprint("v", rand.N(entries))
				if _, err := fetch(ctx, c, value, "pod"); unexpected(err) {
					t.Error(err)
				}
				if _, err := c.FetchJWT(ctx, sel(value), []string{fmt.Sprint(rand.N(3))}, noID); unexpected(err) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				follow(ctx, c, fmt.Sprint("v", rand.N(entries)))
			}
		})
	}
	wg.Wait()

	s.SetDown(nil)
	for i := range entries {
		s.Put(s.Entry(fmt.Sprint("e", i), fmt.Sprintf("/%d", i), fmt.Sprint("v", i)))
	}
	s.Sync(c)
	for i := range entries {
		g, err := fetch(t.Context(), c, fmt.Sprint("v", i))
		if err != nil || len(g.Identities) != 1 {
			t.Fatalf("workload %d in the end: %v", i, err)
		}
		verify(t, g)
	}
	if _, _, _, kept, unused, _, _ := c.Sizes(); kept != 15 || unused != 15 {
		t.Errorf("%d are kept and %d unused in the end, want 15", kept, unused)
	}
}

func unexpected(err error) bool {
	return err != nil && !errors.Is(err, cache.ErrNoIdentity) && !errors.Is(err, cache.ErrUnavailable) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

func follow(ctx context.Context, c *cache.Cache, value string) {
	sub := c.Subscribe(sel(value))
	defer sub.Close()
	if _, err := sub.AwaitSVIDs(ctx); err != nil {
		return
	}
	for range rand.N(5) {
		select {
		case <-sub.Changed():
			sub.Latest()
		case <-ctx.Done():
			return
		case <-time.After(rand.N(20 * time.Millisecond)):
		}
	}
}

func churnEntries(ctx context.Context, t *testing.T, c *cache.Cache, s *cachetest.Server, entries int) {
	for ctx.Err() == nil {
		i := rand.N(entries)
		id := fmt.Sprint("e", i)
		var err error
		switch rand.N(20) {
		case 0:
			c.Wipe()
			fallthrough
		case 1:
			c.Open()
			if err = c.Apply(s.Full()); err == nil {
				err = c.Synced(s.Synced())
			}
		case 2:
			s.RotateX509()
			s.TaintX509()
			d := s.Put()
			d.Bundles = append(d.Bundles, s.Bundle())
			err = c.Apply(d)
		case 3, 4, 5, 6:
			err = c.Apply(s.Remove(id))
		default:
			e := s.Entry(id, fmt.Sprintf("/%d", i), fmt.Sprint("v", i))
			e.Hint = fmt.Sprint(rand.N(2))
			e.RevisionNumber = rand.Int64()
			err = c.Apply(s.Put(e))
		}
		if err != nil && !errors.Is(err, feed.ErrDiverged) {
			t.Error(err)
		}
		time.Sleep(rand.N(2 * time.Millisecond))
	}
}
