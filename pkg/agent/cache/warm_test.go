package cache_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

func total(s *cachetest.Server) int {
	n := 0
	for _, b := range s.Batches() {
		n += b
	}
	return n
}

// TestWarmSet: no more than its size is minted ahead, what workloads use is kept
// beyond it, and what they used last stays warm.
func TestWarmSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s, func(cfg *cache.Config) { cfg.MaxX509SVIDs = 10 })
		var entries []*types.Entry
		for i := range 30 {
			entries = append(entries, s.Entry(fmt.Sprintf("e%02d", i), fmt.Sprintf("/%d", i), fmt.Sprint("v", i)))
		}
		s.Put(entries...)
		s.Sync(c)
		synctest.Wait()
		if n := total(s); n != 10 {
			t.Errorf("%d SVIDs were minted ahead, want 10", n)
		}
		var watchers []*watcher
		for i := range 20 {
			watchers = append(watchers, watch(t, c, fmt.Sprint("v", i)))
		}
		synctest.Wait()
		if _, _, _, kept, _, _, _ := c.Sizes(); kept != 20 {
			t.Errorf("%d are kept with 20 in use, want 20", kept)
		}
		// All in use are rotated.
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		for _, w := range watchers {
			verify(t, w.look())
		}
		for _, w := range watchers {
			w.sub.Close()
			time.Sleep(time.Second)
		}
		if _, _, _, kept, unused, _, _ := c.Sizes(); kept != 10 || unused != 10 {
			t.Errorf("%d are kept and %d unused after all have left, want 10", kept, unused)
		}
		s.SetDown(errAway)
		for i := 10; i < 20; i++ {
			if _, err := fetch(t.Context(), c, fmt.Sprint("v", i)); err != nil {
				t.Errorf("one of those used last: %v", err)
			}
		}
		s.SetDown(nil)
		// What goes makes room for others.
		var gone []string
		for i := 10; i < 20; i++ {
			gone = append(gone, fmt.Sprintf("e%02d", i))
		}
		if err := c.Apply(s.Remove(gone...)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, _, _, kept, _, _, _ := c.Sizes(); kept != 10 {
			t.Errorf("%d are kept after a removal, want 10 again", kept)
		}
	})
}

// TestNoPrefetch: such an entry is minted for on demand only, and not rotated for
// nobody.
func TestNoPrefetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		e := s.Entry("e1", "/one", "a")
		e.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true}
		s.Put(e)
		s.Sync(c)
		time.Sleep(3 * time.Hour)
		if n := total(s); n != 0 {
			t.Errorf("%d SVIDs were minted for nobody", n)
		}
		w := watch(t, c, "a")
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		verify(t, w.look())
		before := total(s)
		if before < 6 {
			t.Errorf("%d SVIDs in 3 hours of use", before)
		}
		w.sub.Close()
		time.Sleep(3 * time.Hour)
		if n := total(s) - before; n != 0 {
			t.Errorf("%d SVIDs were minted after the workload had left", n)
		}
		if g, err := fetch(t.Context(), c, "a"); err != nil {
			t.Error(err)
		} else {
			verify(t, g)
		}
	})
}

// slowBatches is a server that takes a second over calls for more than one.
type slowBatches struct{ *cachetest.Server }

func (s slowBatches) MintX509(ctx context.Context, reqs []cache.X509Request) ([]cache.X509Result, error) {
	if len(reqs) > 1 {
		time.Sleep(time.Second)
	}
	return s.Server.MintX509(ctx, reqs)
}

// TestDemandedFirst: a workload does not wait behind the warm set, and no call
// asks for more than 500. The bubble's clock makes it the same on a busy machine.
func TestDemandedFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s, func(cfg *cache.Config) { cfg.MaxX509SVIDs, cfg.Minter = 3000, slowBatches{s} })
		s.Sync(c)
		sub := c.Subscribe(sel("wanted"))
		defer sub.Close()
		var entries []*types.Entry
		for i := range 1600 {
			entries = append(entries, s.Entry(fmt.Sprintf("e%04d", i), "/x", "nobody"))
		}
		put(t, c, s, entries...)
		synctest.Wait() // all calls that may be under way are, and more is queued
		begin := time.Now()
		put(t, c, s, s.Entry("wanted", "/wanted", "wanted"))
		verify(t, await(t, sub))
		if waited := time.Since(begin); waited > 0 {
			t.Errorf("the workload waited for %s", waited)
		}
		if n := total(s); n > 1 {
			t.Errorf("%d were minted before the one that a workload waits for", n-1)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := total(s); n != 1601 {
			t.Errorf("%d of 1601 were minted", n)
		}
		if n := slices.Max(s.Batches()); n > 500 {
			t.Errorf("a call asks for %d", n)
		}
	})
}
