package entitle

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("example.org")
	foreign = spiffeid.RequireTrustDomainFromString("other.org")
	start   = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

// model is the rule, written the naive way: everything is looked at anew for
// each question.
type model struct {
	entries map[string]*known
	agents  map[spiffeid.ID]*registry.Agent
}

// known is an entry, as it was given and taken apart.
type known struct {
	*registry.Entry
	packed *registry.Packed
}

func newModel() *model {
	return &model{entries: map[string]*known{}, agents: map[spiffeid.ID]*registry.Agent{}}
}

func (m *model) apply(c *registry.Commit) {
	if c.Reset {
		clear(m.entries)
		clear(m.agents)
	}
	for _, ch := range c.Entries {
		delete(m.entries, ch.ID)
		if ch.Now != nil {
			m.entries[ch.ID] = &known{ch.Now.Entry(), ch.Now}
		}
	}
	for _, ch := range c.Agents {
		delete(m.agents, ch.ID)
		if ch.Now != nil {
			m.agents[ch.ID] = ch.Now
		}
	}
}

func (m *model) authorized(id spiffeid.ID, now time.Time) map[string]*known {
	out := map[string]*known{}
	a := m.agents[id]
	if a == nil || a.Banned || !id.MemberOf(td) || !now.Before(a.ExpiresAt()) {
		return out
	}
	server := registry.ServerID(td)
	reached := map[spiffeid.ID]bool{id: true}
	for again := true; again; {
		again = false
		for _, e := range m.entries {
			if e.Expired(now) || !e.SPIFFEID.MemberOf(td) || !e.ParentID.MemberOf(td) {
				continue
			}
			isAlias := e.ParentID == server
			if isAlias && !subset(e.Selectors, a.Selectors) || !isAlias && !reached[e.ParentID] {
				continue
			}
			if !isAlias {
				out[e.ID] = e
			}
			if !reached[e.SPIFFEID] {
				reached[e.SPIFFEID] = true
				again = true
			}
		}
	}
	return out
}

func subset(sub, of attest.Selectors) bool {
	for _, s := range sub {
		if !slices.Contains(of, s) {
			return false
		}
	}
	return len(sub) > 0
}

func digestOf(entries map[string]*known) (sums [feedv1.Buckets]uint64) {
	for id, e := range entries {
		sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, uint64(e.ModRevision))
	}
	return sums
}

// universe is small, so that random things meet.
type universe struct {
	agents    []spiffeid.ID
	ids       []spiffeid.ID // parents and SPIFFE IDs
	selectors []attest.Selector
	entries   []string
}

func newUniverse(size int) universe {
	u := universe{ids: []spiffeid.ID{registry.ServerID(td), spiffeid.RequireFromPath(foreign, "/w/0")}}
	for i := range 4 {
		u.agents = append(u.agents, spiffeid.RequireFromPathf(td, "/spire/agent/test/%d", i))
		u.selectors = append(u.selectors, attest.Selector{Type: "node", Value: fmt.Sprint(i)})
	}
	u.ids = append(u.ids, u.agents...)
	u.agents = append(u.agents, spiffeid.RequireFromPath(foreign, "/spire/agent/test/0"))
	for i := range size {
		u.ids = append(u.ids, spiffeid.RequireFromPathf(td, "/w/%d", i))
	}
	for i := range 14 {
		u.entries = append(u.entries, fmt.Sprintf("e%d", i))
	}
	return u
}

func (u universe) selectorSet(t *rapid.T, least int) attest.Selectors {
	return attest.NewSelectors(rapid.SliceOfN(rapid.SampledFrom(u.selectors), least, 3).Draw(t, "selectors")...)
}

func (u universe) entry(t *rapid.T, id string, rev store.Revision) *registry.Entry {
	e := &registry.Entry{
		ID:          id,
		SPIFFEID:    rapid.SampledFrom(u.ids).Draw(t, "spiffe id"),
		ParentID:    rapid.SampledFrom(u.ids).Draw(t, "parent"),
		Selectors:   u.selectorSet(t, 1),
		ModRevision: rev,
	}
	if rapid.IntRange(0, 3).Draw(t, "does it expire") == 0 {
		e.ExpiresAt = start.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "expiry")) * time.Minute)
	}
	if rapid.IntRange(0, 3).Draw(t, "does it federate") == 0 {
		e.FederatesWith = []spiffeid.TrustDomain{foreign, spiffeid.RequireTrustDomainFromString("b.test")}[:rapid.IntRange(1, 2).Draw(t, "with")]
	}
	return e
}

func (u universe) agent(t *rapid.T, id spiffeid.ID, rev store.Revision) *registry.Agent {
	return &registry.Agent{
		ID:          id,
		Selectors:   u.selectorSet(t, 0),
		Banned:      rapid.IntRange(0, 5).Draw(t, "banned") == 0,
		NotAfter:    start.Add(time.Duration(rapid.SampledFrom([]int{20, 1000}).Draw(t, "svid expiry")) * time.Minute),
		ModRevision: rev,
	}
}

// commit draws a commit. An existing entry is often changed in one field only.
func (u universe) commit(t *rapid.T, m *model, rev store.Revision) *registry.Commit {
	c := &registry.Commit{StoreID: "s", Revision: rev}
	if rapid.IntRange(0, 40).Draw(t, "reset") == 0 {
		c.Reset = true
	}
	for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(u.entries), 0, 9, rapid.ID).Draw(t, "entries") {
		ch := registry.EntryChange{ID: id}
		switch old := m.entries[id]; rapid.IntRange(0, 3).Draw(t, "entry change") {
		case 0:
			if c.Reset {
				continue
			}
		case 1:
			now := u.entry(t, id, rev)
			if old != nil {
				fresh := now
				now = old.Clone()
				now.ModRevision = rev
				if rapid.Bool().Draw(t, "in place") {
					now.ExpiresAt, now.FederatesWith = fresh.ExpiresAt, fresh.FederatesWith
				} else {
					now.Selectors = fresh.Selectors
				}
			}
			ch.Now = now.Pack()
		default:
			ch.Now = u.entry(t, id, rev).Pack()
		}
		c.Entries = append(c.Entries, ch)
	}
	for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(u.agents), 0, 2, func(id spiffeid.ID) string { return id.String() }).Draw(t, "agents") {
		ch := registry.AgentChange{ID: id}
		if c.Reset || rapid.IntRange(0, 3).Draw(t, "agent change") != 0 {
			ch.Now = u.agent(t, id, rev)
		}
		c.Agents = append(c.Agents, ch)
	}
	return c
}

func TestGraphIsTheModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		u := newUniverse(rapid.IntRange(2, 7).Draw(t, "size"))
		m, g := newModel(), New(td)
		now := start
		for rev := store.Revision(1); rev <= 12; rev++ {
			now = now.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "minutes")) * time.Minute)
			c := u.commit(t, m, rev)
			before := map[spiffeid.ID]map[string]*known{}
			expiry := map[spiffeid.ID]time.Time{}
			for _, id := range u.agents {
				before[id] = m.authorized(id, now)
				if a := m.agents[id]; a != nil {
					expiry[id] = a.ExpiresAt()
				}
			}
			m.apply(c)
			touched := g.Apply(c)
			if touched.Revision != rev || touched.Reset != c.Reset {
				t.Fatalf("touched says revision %d, reset %t of commit %d, %t", touched.Revision, touched.Reset, rev, c.Reset)
			}
			for _, id := range u.agents {
				want := m.authorized(id, now)
				checkAgent(t, g, m, u, id, now, rev, want)
				if a := m.agents[id]; a != nil && !expiry[id].IsZero() && !expiry[id].Equal(a.ExpiresAt()) {
					continue // Touched does not speak of SVIDs that expire later now.
				}
				checkTouched(t, touched, id, before[id], want)
			}
			checkTables(t, g.tables, m)
		}
	})
}

func checkAgent(t *rapid.T, g *Graph, m *model, u universe, id spiffeid.ID, now time.Time, rev store.Revision, want map[string]*known) {
	list := g.Authorized(id, now)
	got := byID(list)
	if len(list) != len(got) {
		t.Fatalf("%s: an entry is listed twice", id)
	}
	if !maps.Equal(packed(want), got) {
		t.Fatalf("%s (-want +got):\n%s", id, cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))))
	}
	for _, entryID := range u.entries {
		e, ok := g.Lookup(id, entryID, now)
		if ok != (want[entryID] != nil) || e != packed(want)[entryID] {
			t.Fatalf("Lookup(%s, %s): got %v, want %v", id, entryID, e, want[entryID])
		}
	}
	checkCompare(t, g, id, m.authorized(id, time.Time{}))
	s := g.Snapshot(id, now)
	if s.Revision != rev || s.StoreID != "s" || len(s.Entries) != len(want) || s.Buckets != digestOf(want) {
		t.Fatalf("%s: snapshot at %d does not agree with the model at %d", id, s.Revision, rev)
	}
}

// checkCompare holds what is kept for whole families against the model.
func checkCompare(t *rapid.T, g *Graph, id spiffeid.ID, want map[string]*known) {
	limit := uint8(rapid.IntRange(0, 255).Draw(t, "buckets"))
	some := func(bucket uint8) bool { return bucket <= limit }
	for name, wanted := range map[string]func(uint8) bool{"none": nil, "some": some} {
		var shown [feedv1.Buckets]uint64
		s := g.Compare(id, func(sums *[feedv1.Buckets]uint64) func(uint8) bool {
			shown = *sums
			return wanted
		})
		entries, domains := map[string]*registry.Packed{}, map[spiffeid.TrustDomain]struct{}{}
		for entryID, e := range want {
			if wanted != nil && wanted(feedv1.Bucket(entryID)) {
				entries[entryID] = e.packed
			}
			for _, td := range e.FederatesWith {
				domains[td] = struct{}{}
			}
		}
		if s.Buckets != digestOf(want) || s.Buckets != shown || !maps.Equal(entries, byID(s.Entries)) || len(entries) != len(s.Entries) {
			t.Fatalf("%s, %s: compared, the snapshot does not agree with the model", id, name)
		}
		if !maps.Equal(domains, s.Domains) || !maps.Equal(domains, g.Domains(id)) || !maps.Equal(domains, g.Snapshot(id, time.Time{}).Domains) {
			t.Fatalf("%s: domains are %v, want %v", id, s.Domains, domains)
		}
	}
}

func byID(list []*registry.Packed) map[string]*registry.Packed {
	out := map[string]*registry.Packed{}
	for _, p := range list {
		out[p.ID()] = p
	}
	return out
}

func packed(entries map[string]*known) map[string]*registry.Packed {
	out := map[string]*registry.Packed{}
	for id, e := range entries {
		out[id] = e.packed
	}
	return out
}

// checkTouched holds the promise "never too little".
func checkTouched(t *rapid.T, touched Touched, id spiffeid.ID, before, after map[string]*known) {
	if touched.Reset || slices.Contains(touched.Whole, id) {
		return
	}
	named := map[string]bool{}
	for agent, entries := range touched.All() {
		if agent == id {
			for _, e := range entries {
				named[e] = true
			}
		}
	}
	for _, side := range []map[string]*known{before, after} {
		for entryID := range side {
			if before[entryID] != after[entryID] && !named[entryID] {
				t.Fatalf("%s: %s changed from %v to %v, and is not in %+v", id, entryID, before[entryID], after[entryID], touched)
			}
		}
	}
}

// checkTables holds that nothing is left behind of what has gone.
func checkTables(t *rapid.T, tb *tables, m *model) {
	entries, aliases, members := 0, 0, 0
	ids := map[spiffeid.ID]bool{}
	for _, e := range m.entries {
		if tb.relevant(e.packed) {
			entries++
			ids[e.SPIFFEID] = true
			if e.IsAlias() {
				aliases++
			}
		}
	}
	agents := 0
	for id, a := range m.agents {
		if id.MemberOf(td) && !a.Banned {
			agents++
		}
	}
	for parent, f := range tb.families {
		if len(f.members) == 0 {
			t.Fatalf("family of %s is empty", parent)
		}
		members += len(f.members)
		for _, gr := range f.members {
			if _, listed := f.branches[gr]; listed != (gr.below != nil) || gr.below != tb.families[gr.path()] {
				t.Fatalf("family of %s does not know what is below %s", parent, gr.entry.ID())
			}
		}
	}
	listed := 0
	for _, list := range tb.aliasesBy {
		listed += len(list)
	}
	joined := 0
	for _, list := range tb.agents {
		joined += len(list.aliases)
	}
	for _, al := range tb.aliases {
		joined -= len(al.agents)
	}
	want := []int{entries, len(ids), aliases, aliases, agents, entries - aliases, 0}
	got := []int{len(tb.grants), len(tb.holders), len(tb.aliases), listed, len(tb.agents), members, joined}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("grants, holders, aliases, listed, agents, members, joins (-want +got):\n%s", diff)
	}
}

// Readers that run beside Apply see one revision, whole.
func TestReadersSeeWholeCommits(t *testing.T) {
	t.Parallel()
	u := newUniverse(5)
	type answers map[spiffeid.ID]map[string]*known
	var commits []*registry.Commit
	want := []answers{{}}
	gen := rapid.Custom(func(t *rapid.T) []*registry.Commit {
		m := newModel()
		var out []*registry.Commit
		for rev := store.Revision(1); rev <= 60; rev++ {
			c := u.commit(t, m, rev)
			m.apply(c)
			out = append(out, c)
		}
		return out
	})
	commits = gen.Example(1)
	m := newModel()
	for _, c := range commits {
		m.apply(c)
		a := answers{}
		for _, id := range u.agents {
			a[id] = m.authorized(id, start)
		}
		want = append(want, a)
	}
	for range 20 {
		readBeside(t, u, commits, func(s Snapshot, id spiffeid.ID) bool {
			expected := want[s.Revision][id]
			return maps.Equal(packed(expected), byID(s.Entries)) && s.Buckets == digestOf(expected)
		})
	}
}

func readBeside(t *testing.T, u universe, commits []*registry.Commit, good func(Snapshot, spiffeid.ID) bool) {
	t.Helper()
	g := New(td)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, id := range u.agents {
		wg.Go(func() {
			for last := store.Revision(0); ; {
				s := g.Snapshot(id, start)
				if !good(s, id) {
					t.Errorf("%s at revision %d: snapshot is not that of the model", id, s.Revision)
					return
				}
				if s.Revision < last {
					t.Errorf("%s: revision went from %d back to %d", id, last, s.Revision)
					return
				}
				last = s.Revision
				for _, entryID := range u.entries {
					g.Lookup(id, entryID, start)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for _, c := range commits {
		g.Apply(c)
	}
	close(done)
	wg.Wait()
}
