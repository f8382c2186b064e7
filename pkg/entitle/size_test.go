package entitle_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// BenchmarkSize is what the tables in memory take: index and graph together, an
// entry. With SOAK=1 it loads 100,000 from a store, as a server does when it
// starts, and makes 1,000,000 without one, which would take minutes to write.
// peak-B/entry is the most the heap had from the system, garbage of the load
// included.
func BenchmarkSize(b *testing.B) {
	stored, made := 10_000, 100_000
	if os.Getenv("SOAK") != "" {
		stored, made = 100_000, 1_000_000
	}
	b.Run(fmt.Sprint("stored/", stored), func(b *testing.B) {
		r := filled(b, stored)
		size(b, stored, func(apply func(*registry.Commit)) {
			loaded := errors.New("loaded")
			err := r.Follow(b.Context(), func(c *registry.Commit) error {
				apply(c)
				return loaded
			})
			if !errors.Is(err, loaded) {
				b.Fatal(err)
			}
		})
	})
	b.Run(fmt.Sprint("made/", made), func(b *testing.B) {
		size(b, made, func(apply func(*registry.Commit)) {
			c := &registry.Commit{Reset: true, Revision: 1}
			for i, e := range entries(0, made) {
				e.ID = fmt.Sprintf("0197a5e0-0000-7000-8000-%012d", i)
				c.Entries = append(c.Entries, registry.EntryChange{ID: e.ID, Now: e.Pack()})
			}
			apply(c)
		})
	})
}

// size reports what load leaves in an index and a graph.
func size(b *testing.B, n int, load func(apply func(*registry.Commit))) {
	per := func(bytes uint64) float64 { return float64(bytes) / float64(n) }
	for b.Loop() {
		before := heap()
		index, graph := registry.NewIndex(), entitle.New(domain)
		load(func(c *registry.Commit) {
			graph.Apply(c)
			index.Apply(c)
		})
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(per(m.HeapSys-m.HeapReleased), "peak-B/entry")
		b.ReportMetric(per(heap()-before), "live-B/entry")
		index.CountEntries(registry.EntryFilter{ParentID: registry.ServerID(domain)}, time.Now())
		b.ReportMetric(per(heap()-before), "ordered-B/entry")
		runtime.KeepAlive(index)
		runtime.KeepAlive(graph)
	}
}

// heap is the bytes in use after everything unused was given back.
func heap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// filled is a registry with n entries as P8 has them: random SPIFFE IDs, two
// selectors, one of them of this entry alone, a hundred parents.
func filled(b *testing.B, n int) *registry.Registry {
	b.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(b.TempDir(), "store")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	r, err := registry.New(b.Context(), registry.Config{Store: s, TrustDomain: domain})
	if err != nil {
		b.Fatal(err)
	}
	const batch = 10_000
	for from := 0; from < n; from += batch {
		var list []*registry.Entry
		for _, e := range entries(from, from+batch) {
			list = append(list, e)
		}
		for _, res := range r.CreateEntries(b.Context(), list) {
			if res.Err != nil {
				b.Fatal(res.Err)
			}
		}
	}
	return r
}

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// entries yields entries as P8 has them, without IDs.
func entries(from, to int) iter.Seq2[int, *registry.Entry] {
	return func(yield func(int, *registry.Entry) bool) {
		for i := from; i < to; i++ {
			name := rand.Text()
			e := &registry.Entry{
				SPIFFEID: spiffeid.RequireFromPath(domain, "/ns/bench/sa/"+name),
				ParentID: spiffeid.RequireFromPathf(domain, "/spire/agent/bench/%d", i%100),
				Selectors: attest.NewSelectors(
					attest.Selector{Type: "k8s", Value: "ns:bench"}, attest.Selector{Type: "k8s", Value: "sa:" + name}),
				CreatedAt: time.Now(),
			}
			if !yield(i, e) {
				return
			}
		}
	}
}
