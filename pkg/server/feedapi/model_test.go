package feedapi_test

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/server/feedapi"
)

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// model is the rooms that the feed reads, without a store: commits are made by
// hand, so that a test decides when each room sees them.
type model struct {
	t        testing.TB
	hub      *feedapi.Hub
	index    *registry.Index
	graph    *entitle.Graph
	revision store.Revision
	agent    spiffeid.ID
	entries  map[string]*registry.Entry
	bundles  map[spiffeid.TrustDomain]bool
}

func newModel(t testing.TB) *model {
	t.Helper()
	m := &model{
		t: t, index: registry.NewIndex(), graph: entitle.New(domain),
		agent:   spiffeid.RequireFromString("spiffe://example.org/spire/agent/test/one"),
		entries: map[string]*registry.Entry{}, bundles: map[spiffeid.TrustDomain]bool{},
	}
	var err error
	m.hub, err = feedapi.New(feedapi.Config{TrustDomain: domain, Graph: m.graph, Index: m.index, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	m.commit(&registry.Commit{
		Reset: true,
		Agents: []registry.AgentChange{{ID: m.agent, Now: &registry.Agent{
			ID: m.agent, Serial: "1", NotAfter: time.Now().Add(time.Hour),
			Selectors: attest.NewSelectors(attest.Selector{Type: "test", Value: "all"}),
		}}},
		Bundles: []registry.BundleChange{{TrustDomain: domain, Now: &registry.Bundle{TrustDomain: domain, ModRevision: 1}}},
	})
	return m
}

// apply brings a commit to the rooms and returns what publishes it.
func (m *model) apply(c *registry.Commit) (publish func()) {
	m.revision++
	c.StoreID, c.Revision = "store", m.revision
	for i, ch := range c.Entries {
		if ch.Now != nil {
			e := ch.Now.Entry()
			e.ModRevision = m.revision
			c.Entries[i].Now = e.Pack()
		}
	}
	for _, ch := range c.Bundles {
		if ch.Now != nil {
			ch.Now.ModRevision = m.revision
		}
	}
	m.index.Apply(c)
	touched := m.graph.Apply(c)
	return func() { m.hub.Publish(c, touched) }
}

func (m *model) commit(c *registry.Commit) { m.apply(c)() }

// entry is an entry of the agent, ready for a commit.
func (m *model) entry(id string, federatesWith ...spiffeid.TrustDomain) registry.EntryChange {
	e := &registry.Entry{
		ID: id, SPIFFEID: spiffeid.RequireFromPath(domain, "/"+id), ParentID: m.agent, FederatesWith: federatesWith,
		Selectors: attest.NewSelectors(attest.Selector{Type: "test", Value: "all"}),
	}
	return registry.EntryChange{ID: id, Now: e.Pack()}
}

func (m *model) entriesNamed(prefix string, n int) []registry.EntryChange {
	var out []registry.EntryChange
	for i := range n {
		out = append(out, m.entry(fmt.Sprint(prefix, i)))
	}
	return out
}

// check holds the mirror against the rooms.
func (m *model) check(got *mirror) {
	m.t.Helper()
	entries, bundles := map[string]uint64{}, map[string]uint64{}
	domains := []spiffeid.TrustDomain{domain}
	for _, e := range m.graph.Snapshot(m.agent, time.Time{}).Entries {
		entries[e.ID()] = uint64(e.ModRevision())
		domains = append(domains, e.FederatesWith()...)
	}
	for _, td := range domains {
		if b, ok := m.index.Bundle(td); ok {
			bundles[td.Name()] = uint64(b.ModRevision)
		}
	}
	if maps.Equal(entries, got.entries) && maps.Equal(bundles, got.bundles) {
		return
	}
	if diff := cmp.Diff(entries, got.entries); diff != "" {
		m.t.Errorf("entries at revision %d (-want +got):\n%s", m.revision, diff)
	}
	if diff := cmp.Diff(bundles, got.bundles); diff != "" {
		m.t.Errorf("bundles at revision %d (-want +got):\n%s", m.revision, diff)
	}
	m.t.FailNow()
}

// take is one message into the mirror, by way of the wire.
func (m *mirror) take(r *feedv1.WatchResponse) error {
	if d := r.GetDelta(); d != nil {
		d, err := overWire(d)
		if err != nil {
			return err
		}
		m.apply(d)
		return nil
	}
	return m.finish(r.GetSynced())
}

// TestResyncMeetsCommits: commits that come between the parts of a resync are
// neither lost nor spoil its digest.
func TestResyncMeetsCommits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// before is published while the resync waits for its snapshot's
		// revision, after it has that and before it takes the marks.
		before, after func(m *model) *registry.Commit
	}{
		"entry of the snapshot": {
			before: func(m *model) *registry.Commit {
				return &registry.Commit{Entries: []registry.EntryChange{m.entry("late")}}
			},
		},
		"entry after the snapshot": {
			after: func(m *model) *registry.Commit {
				return &registry.Commit{Entries: []registry.EntryChange{m.entry("late")}}
			},
		},
		"entry of the snapshot changes after it": {
			before: func(m *model) *registry.Commit {
				return &registry.Commit{Entries: []registry.EntryChange{m.entry("late")}}
			},
			after: func(m *model) *registry.Commit {
				return &registry.Commit{Entries: []registry.EntryChange{m.entry("late")}}
			},
		},
		"entry of the snapshot goes after it": {
			before: func(m *model) *registry.Commit {
				return &registry.Commit{Entries: []registry.EntryChange{m.entry("late")}}
			},
			after: func(m *model) *registry.Commit {
				return &registry.Commit{Entries: []registry.EntryChange{{ID: "late"}}}
			},
		},
		"many entries after the snapshot": {
			after: func(m *model) *registry.Commit {
				return &registry.Commit{Entries: m.entriesNamed("x", 2*feedapi.MaxPending)}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newModel(t)
			got := newMirror()
			s, err := m.hub.NewSession(t.Context(), m.agent, got.take)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Open(t.Context(), got.open()); err != nil {
				t.Fatal(err)
			}
			// "late" is in a bucket of its own, which the resync of few
			// others does not cover by chance.
			m.commit(&registry.Commit{Entries: m.fewBuckets(feedapi.MaxPending+1, feedv1.Bucket("late"))})

			publish := func() {}
			if c.before != nil {
				publish = m.apply(c.before(m))
			}
			go publish() // Snapshot waits for it.
			_, settle, err := s.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c.after != nil {
				m.commit(c.after(m))
			}
			if err := settle(); err != nil {
				t.Fatal(err)
			}
			if err := s.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.check(got)
		})
	}
}

// fewBuckets makes n entries in 16 buckets, none of them the given one.
func (m *model) fewBuckets(n int, not uint8) []registry.EntryChange {
	var out []registry.EntryChange
	for i := 0; len(out) < n; i++ {
		id := fmt.Sprint("few", i)
		if b := feedv1.Bucket(id); b%16 == 0 && b != not {
			out = append(out, m.entry(id))
		}
	}
	return out
}

// TestDrainModel makes random commits while messages are being sent, as many of
// them as there are messages, and compares after each time the stream has
// nothing left.
func TestDrainModel(t *testing.T) {
	t.Parallel()
	for range 15 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			m := newModel(t)
			got := newMirror()
			s, err := m.hub.NewSession(t.Context(), m.agent, func(r *feedv1.WatchResponse) error {
				for rnd.IntN(5) == 0 {
					m.random(rnd)
				}
				return got.take(r)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Open(t.Context(), got.open()); err != nil {
				t.Fatal(err)
			}
			for range 40 {
				for range 1 + rnd.IntN(4) {
					m.random(rnd)
				}
				if err := s.Drain(t.Context()); err != nil {
					t.Fatal(err)
				}
				m.check(got)
			}
		})
	}
}

// random makes one small or, rarely, one large commit.
func (m *model) random(rnd *rand.Rand) {
	c := &registry.Commit{}
	n := 1 + rnd.IntN(4)*rnd.IntN(2)
	if rnd.IntN(20) == 0 {
		n = 3 * feedapi.MaxPending
	}
	seen := map[string]bool{}
	for range n {
		id := fmt.Sprint("e", rnd.IntN(2*n+10))
		if seen[id] {
			continue
		}
		seen[id] = true
		before := m.entries[id]
		if before != nil && rnd.IntN(2) == 0 {
			delete(m.entries, id)
			c.Entries = append(c.Entries, registry.EntryChange{ID: id})
			continue
		}
		now := m.entry(id).Now.Entry()
		switch {
		case before != nil && rnd.IntN(2) == 0:
			*now = *before
		case rnd.IntN(8) == 0:
			now.FederatesWith = foreign[:1+rnd.IntN(2)]
		}
		if above := m.entries[fmt.Sprint("e", rnd.IntN(10))]; above != nil && rnd.IntN(3) == 0 {
			now.ParentID = above.SPIFFEID
		}
		if rnd.IntN(4) == 0 {
			now.ParentID = spiffeid.RequireFromPathf(domain, "/other/%d", rnd.IntN(4))
		}
		if rnd.IntN(6) == 0 {
			now.SPIFFEID = spiffeid.RequireFromPathf(domain, "/other/%d", rnd.IntN(4))
		}
		m.entries[id] = now
		c.Entries = append(c.Entries, registry.EntryChange{ID: id, Now: now.Pack()})
	}
	for _, td := range append(foreign, domain) {
		if rnd.IntN(12) != 0 {
			continue
		}
		ch := registry.BundleChange{TrustDomain: td}
		if td == domain || !m.bundles[td] || rnd.IntN(2) == 0 {
			ch.Now = &registry.Bundle{TrustDomain: td}
		}
		m.bundles[td] = ch.Now != nil
		c.Bundles = append(c.Bundles, ch)
	}
	m.commit(c)
}
