package cache_test

import (
	"fmt"
	"testing"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// manyEntries puts n entries on the server; each has a selector of its own and
// one that all have.
func manyEntries(s *cachetest.Server, n int) {
	entries := make([]*types.Entry, 0, n)
	for i := range n {
		entries = append(entries, s.Entry(fmt.Sprintf("e%06d", i), fmt.Sprintf("/%d", i), "all", fmt.Sprint("v", i)))
	}
	s.Put(entries...)
}

// BenchmarkChange is an entry written until the workload has its SVID, the
// signature included (P1's part on the agent, and the authority's).
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			s := cachetest.New(b, "example.org")
			c := newCache(b, s, func(cfg *cache.Config) { cfg.MaxX509SVIDs = 1 })
			manyEntries(s, n)
			entry := s.Entry("mine", "/mine", "a")
			s.Put(entry)
			s.Sync(c)
			sub := c.Subscribe(sel("a"))
			defer sub.Close()
			await(b, sub)
			for b.Loop() {
				sub.Latest()
				entry.RevisionNumber++
				if err := c.Apply(s.Put(entry)); err != nil {
					b.Fatal(err)
				}
				<-sub.Changed()
			}
		})
	}
}

// BenchmarkOneShot is what a workload that connects, asks once and leaves costs.
func BenchmarkOneShot(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			s := cachetest.New(b, "example.org")
			c := newCache(b, s, func(cfg *cache.Config) { cfg.MaxX509SVIDs = 10 })
			manyEntries(s, n)
			s.Sync(c)
			have := sel("all", "v0", "x", "y", "z")
			for b.Loop() {
				sub := c.Subscribe(have)
				if _, err := sub.AwaitSVIDs(b.Context()); err != nil {
					b.Fatal(err)
				}
				sub.Close()
			}
		})
	}
}

// BenchmarkMatch is a workload with selectors that were not seen before.
func BenchmarkMatch(b *testing.B) {
	s := cachetest.New(b, "example.org")
	c := idleCache(b, s)
	manyEntries(s, 100_000)
	s.Sync(c)
	i := 0
	for b.Loop() {
		i++
		c.Subscribe(sel("all", fmt.Sprint("v", i%100_000), fmt.Sprint("pod", i))).Close()
	}
}

// BenchmarkSync is an agent that gets all of its entries.
func BenchmarkSync(b *testing.B) {
	s := cachetest.New(b, "example.org")
	manyEntries(s, 10_000)
	full, synced := s.Full(), s.Synced()
	for b.Loop() {
		c := idleCache(b, s)
		if err := c.Apply(full); err != nil {
			b.Fatal(err)
		}
		if err := c.Synced(synced); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkJWT is a JWT-SVID that is held.
func BenchmarkJWT(b *testing.B) {
	s := cachetest.New(b, "example.org")
	c := newCache(b, s)
	s.Put(s.Entry("e1", "/one", "a"))
	s.Sync(c)
	have := sel("a", "b", "c")
	for b.Loop() {
		if _, err := c.FetchJWT(b.Context(), have, []string{"bench"}, noID); err != nil {
			b.Fatal(err)
		}
	}
}
