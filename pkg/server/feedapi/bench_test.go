package feedapi_test

import (
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/feedapi"
)

func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// aliasFor makes an alias that every test agent matches.
func aliasFor(tb testing.TB, w *apitest.World) spiffeid.ID {
	tb.Helper()
	alias := w.Entry(tb, registry.ServerID(w.TrustDomain), "/everywhere")
	alias.Selectors = attest.NewSelectors(attest.Selector{Type: "test", Value: "all"})
	return w.Create(tb, alias)[0].SPIFFEID
}

// BenchmarkOneStream is from the call that creates an entry to the message that
// brings it: what the server has of P1.
func BenchmarkOneStream(b *testing.B) {
	w := apitest.New(b, apitest.Options{})
	agent := w.NewAgent(b, "one")
	m := newMirror()
	s := watch(b.Context(), b, w.Dial(b, &agent.Cert), m)
	until(b, s, m, m.isSynced)
	n := 0
	for b.Loop() {
		n++
		for _, r := range w.Registry.CreateEntries(b.Context(), []*registry.Entry{w.Entry(b, agent.ID, fmt.Sprint("/e/", n))}) {
			if r.Err != nil {
				b.Fatal(r.Err)
			}
			until(b, s, m, func() bool { _, ok := m.entries[r.Entry.ID]; return ok })
		}
	}
}

// BenchmarkFanOut is one entry that reaches 1,000 streams of agents behind one
// alias, over TLS, both ends in this process.
func BenchmarkFanOut(b *testing.B) {
	const agents = 1000
	w := apitest.New(b, apitest.Options{})
	parent := aliasFor(b, w)
	var reached, reading sync.WaitGroup
	for i := range agents {
		agent := w.AttestedAgent(b, fmt.Sprint(i))
		m := newMirror()
		s := watch(b.Context(), b, w.Dial(b, &agent.Cert), m)
		until(b, s, m, m.isSynced)
		reading.Go(func() {
			for {
				resp, err := s.Recv()
				if err != nil {
					return
				}
				if len(resp.GetDelta().GetUpserts()) > 0 {
					reached.Done()
				}
			}
		})
	}
	n := 0
	begin := cpu(b)
	for b.Loop() {
		n++
		reached.Add(agents)
		w.Create(b, w.Entry(b, parent, fmt.Sprint("/e/", n)))
		reached.Wait()
	}
	b.ReportMetric(float64(cpu(b)-begin)/float64(b.N*agents), "cpu-ns/stream")
}

// BenchmarkPublish is the part of the fan-out that holds up the follower of the
// log: 5,000 agents, 10,000 entries each.
func BenchmarkPublish(b *testing.B) {
	const agents, entries = 5000, 10000
	index, graph := registry.NewIndex(), entitle.New(domain)
	hub, err := feedapi.New(feedapi.Config{TrustDomain: domain, Graph: graph, Index: index, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	all := attest.NewSelectors(attest.Selector{Type: "test", Value: "all"})
	parent := spiffeid.RequireFromPath(domain, "/everywhere")
	c := &registry.Commit{Reset: true, StoreID: "store", Revision: 1}
	c.Entries = append(c.Entries, registry.EntryChange{ID: "alias", Now: (&registry.Entry{
		ID: "alias", SPIFFEID: parent, ParentID: registry.ServerID(domain), Selectors: all,
	}).Pack()})
	entry := func(i int) registry.EntryChange {
		id := fmt.Sprint("e", i)
		return registry.EntryChange{ID: id, Now: (&registry.Entry{
			ID: id, SPIFFEID: spiffeid.RequireFromPath(domain, "/"+id), ParentID: parent, Selectors: all,
		}).Pack()}
	}
	for i := range entries {
		c.Entries = append(c.Entries, entry(i))
	}
	var ids []spiffeid.ID
	for i := range agents {
		id := spiffeid.RequireFromPathf(domain, "/spire/agent/test/%d", i)
		ids = append(ids, id)
		c.Agents = append(c.Agents, registry.AgentChange{ID: id, Now: &registry.Agent{ID: id, Selectors: all, NotAfter: time.Now().Add(time.Hour)}})
	}
	index.Apply(c)
	hub.Publish(c, graph.Apply(c))
	var sessions []*feedapi.Session
	for _, id := range ids {
		s, err := hub.NewSession(b.Context(), id, func(*feedv1.WatchResponse) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	b.Run("publish", func(b *testing.B) {
		for b.Loop() {
			c := &registry.Commit{StoreID: "store", Revision: c.Revision + 1, Entries: []registry.EntryChange{entry(1)}}
			index.Apply(c)
			hub.Publish(c, graph.Apply(c))
		}
	})
	b.Run("drain", func(b *testing.B) { // One stream's part, without gRPC.
		for i := 0; b.Loop(); i++ {
			if i%agents == 0 {
				c := &registry.Commit{StoreID: "store", Revision: c.Revision + 1, Entries: []registry.EntryChange{entry(1)}}
				index.Apply(c)
				hub.Publish(c, graph.Apply(c))
			}
			if err := sessions[i%agents].Drain(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("full", func(b *testing.B) { // An agent that holds nothing, encoded.
		var size int
		s, err := hub.NewSession(b.Context(), ids[0], func(m *feedv1.WatchResponse) error {
			raw, err := proto.Marshal(m)
			size += len(raw)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := s.Open(b.Context(), &feedv1.Open{}); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(size / b.N))
	})
	b.Run("open", func(b *testing.B) { // An agent comes back, nothing differs.
		snap := graph.Snapshot(ids[0], time.Time{})
		open := &feedv1.Open{StoreId: "store", Revision: uint64(snap.Revision), Buckets: snap.Buckets[:]}
		for b.Loop() {
			if err := sessions[0].Open(b.Context(), open); err != nil {
				b.Fatal(err)
			}
		}
	})
}
