package entitle_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
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

// sizeEntries is how many entries BenchmarkSize loads: the large sets, which
// take a minute to write, only with SOAK=1.
func sizeEntries() []int {
	if os.Getenv("SOAK") == "" {
		return []int{10_000}
	}
	return []int{100_000, 1_000_000}
}

// BenchmarkSize is what the tables in memory take: index and graph together, an
// entry, loaded from the store as a server does when it starts. peak-B/entry is
// the most the heap had from the system, garbage of the load included.
func BenchmarkSize(b *testing.B) {
	for _, n := range sizeEntries() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := filled(b, n)
			for b.Loop() {
				before := heap()
				index, graph := registry.NewIndex(), entitle.New(r.TrustDomain())
				began := time.Now()
				loadOnce(b, r, index, graph)
				b.ReportMetric(time.Since(began).Seconds()*1e3, "load-ms")
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				b.ReportMetric(float64(m.HeapSys-m.HeapReleased)/float64(n), "peak-B/entry")
				b.ReportMetric(float64(heap()-before)/float64(n), "live-B/entry")
				index.CountEntries(registry.EntryFilter{ParentID: registry.ServerID(r.TrustDomain())}, time.Now())
				b.ReportMetric(float64(heap()-before)/float64(n), "ordered-B/entry")
				runtime.KeepAlive(index)
				runtime.KeepAlive(graph)
			}
		})
	}
}

// heap is the bytes in use after everything unused was given back.
func heap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// loadOnce applies the first commit of a follower.
func loadOnce(b *testing.B, r *registry.Registry, index *registry.Index, graph *entitle.Graph) {
	b.Helper()
	loaded := errors.New("loaded")
	err := r.Follow(b.Context(), func(c *registry.Commit) error {
		graph.Apply(c)
		index.Apply(c)
		return loaded
	})
	if !errors.Is(err, loaded) {
		b.Fatal(err)
	}
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
	td := spiffeid.RequireTrustDomainFromString("example.org")
	r, err := registry.New(b.Context(), registry.Config{Store: s, TrustDomain: td})
	if err != nil {
		b.Fatal(err)
	}
	const batch = 10_000
	for done := 0; done < n; done += batch {
		create(b.Context(), b, r, done, batch)
	}
	return r
}

func create(ctx context.Context, b *testing.B, r *registry.Registry, from, n int) {
	b.Helper()
	entries := make([]*registry.Entry, n)
	for i := range entries {
		name := rand.Text()
		entries[i] = &registry.Entry{
			SPIFFEID: spiffeid.RequireFromPath(r.TrustDomain(), "/ns/bench/sa/"+name),
			ParentID: spiffeid.RequireFromPathf(r.TrustDomain(), "/spire/agent/bench/%d", (from+i)%100),
			Selectors: attest.NewSelectors(
				attest.Selector{Type: "k8s", Value: "ns:bench"}, attest.Selector{Type: "k8s", Value: "sa:" + name}),
		}
	}
	for _, res := range r.CreateEntries(ctx, entries) {
		if res.Err != nil {
			b.Fatal(res.Err)
		}
	}
}
