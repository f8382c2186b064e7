package cache_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// TestBudget goes through an outage with one entry that a stream follows, one
// that is warm and ends sooner, and one that is made on demand only.
func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		look := func(when string, want cache.Budget) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, c.Budget(time.Now())); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		look("before anything came", cache.Budget{})
		short := s.Entry("short", "/short", "short")
		short.X509SvidTtl = 600
		cold := s.Entry("cold", "/cold", "cold")
		cold.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true}
		s.Put(s.Entry("used", "/used", "used"), short, cold)
		s.Sync(c)
		w := watch(t, c, "used")
		synctest.Wait()
		end := w.look().Identities[0].NotAfter
		look("at the start", cache.Budget{Left: 10 * time.Minute, InUse: 1, Warm: 1, Cold: 1})

		s.SetDown(errAway)
		time.Sleep(4 * time.Minute)
		look("before anything was due", cache.Budget{Left: 6 * time.Minute, InUse: 1, Warm: 1, Cold: 1})
		time.Sleep(6 * time.Minute)
		look("when the warm one has ended", cache.Budget{Left: time.Until(end), InUse: 1, Cold: 2})

		sub := c.Subscribe(sel("cold"))
		defer sub.Close()
		_, err := sub.AwaitSVIDs(t.Context())
		wantErr(t, err, cache.ErrUnavailable)
		look("when a workload came for the cold one", cache.Budget{InUse: 1, Missing: 1, Cold: 1})
		sub.Close()
		time.Sleep(time.Until(end))
		look("when all have ended", cache.Budget{Missing: 1, Cold: 2})

		s.SetDown(nil)
		s.Sync(c)
		synctest.Wait()
		if b := c.Budget(time.Now()); b.InUse != 1 || b.Missing != 0 || b.Left <= 0 {
			t.Errorf("after the outage: %+v", b)
		}
		c.Wipe()
		look("when the agent was banned", cache.Budget{})
	})
}

// TestBudgetCountsAnEntryOnce, however many workloads share it.
func TestBudgetCountsAnEntryOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s, func(cfg *cache.Config) { cfg.MaxX509SVIDs = 3 })
		for _, id := range []string{"1", "2", "3", "4", "5"} {
			s.Put(s.Entry(id, "/"+id, "v"+id))
		}
		s.Sync(c)
		watch(t, c, "v1", "v2")
		watch(t, c, "v1")
		watch(t, c, "v1", "v2", "other")
		synctest.Wait()
		want := cache.Budget{Left: time.Hour, InUse: 2, Warm: 1, Cold: 2}
		if diff := cmp.Diff(want, c.Budget(time.Now())); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if got := want.Entries(); got != 5 {
			t.Errorf("%d entries", got)
		}
	})
}

func BenchmarkBudget(b *testing.B) {
	s := cachetest.New(b, "example.org")
	c := idleCache(b, s)
	for i := range 20_000 {
		id := string(rune('a'+i%26)) + time.Duration(i).String()
		s.Put(s.Entry(id, "/"+id, id))
	}
	s.Sync(c)
	for b.Loop() {
		c.Budget(time.Now())
	}
}
