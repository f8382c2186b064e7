package entitle

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(td, path) }

func sel(values ...string) attest.Selectors {
	out := make([]attest.Selector, len(values))
	for i, v := range values {
		out[i] = attest.Selector{Type: "node", Value: v}
	}
	return attest.NewSelectors(out...)
}

// log makes commits one after another.
type log struct {
	graph *Graph
	rev   store.Revision
}

func (l *log) apply(changes ...any) Touched {
	l.rev++
	c := &registry.Commit{StoreID: "s", Revision: l.rev}
	for _, ch := range changes {
		switch ch := ch.(type) {
		case *registry.Entry:
			ch.ModRevision = l.rev
			c.Entries = append(c.Entries, registry.EntryChange{ID: ch.ID, Now: ch.Pack()})
		case *registry.Agent:
			ch.ModRevision = l.rev
			c.Agents = append(c.Agents, registry.AgentChange{ID: ch.ID, Now: ch})
		case string:
			c.Entries = append(c.Entries, registry.EntryChange{ID: ch})
		case spiffeid.ID:
			c.Agents = append(c.Agents, registry.AgentChange{ID: ch})
		}
	}
	return l.graph.Apply(c)
}

func newAgent(name string, selectors ...string) *registry.Agent {
	return &registry.Agent{ID: id("/spire/agent/test/" + name), Selectors: sel(selectors...), NotAfter: start.Add(time.Hour)}
}

func newEntry(entryID, parent, spiffeID string, selectors ...string) *registry.Entry {
	if len(selectors) == 0 {
		selectors = []string{"x"}
	}
	return &registry.Entry{ID: entryID, ParentID: id(parent), SPIFFEID: id(spiffeID), Selectors: sel(selectors...)}
}

func authorized(g *Graph, a *registry.Agent, now time.Time) []string {
	var out []string
	for _, e := range g.Authorized(a.ID, now) {
		out = append(out, e.ID())
	}
	slices.Sort(out)
	return out
}

// The rule by example; the property test has the rest.
func TestAuthorized(t *testing.T) {
	t.Parallel()
	a, b := newAgent("a", "rack1", "gpu"), newAgent("b", "rack1")
	banned, gone := newAgent("banned", "rack1"), newAgent("gone", "rack1")
	banned.Banned = true
	gone.NotAfter = start
	expired := newEntry("expired", "/spire/agent/test/a", "/w/expired")
	expired.ExpiresAt = start
	strange := newEntry("strange", "/racks/1", "/w/strange")
	strange.SPIFFEID = spiffeid.RequireFromPath(foreign, "/w")
	l := &log{graph: New(td)}
	l.apply(a, b, banned, gone, expired, strange,
		newEntry("direct", "/spire/agent/test/a", "/w/direct"),
		newEntry("rack", "/spire/server", "/racks/1", "rack1"),
		newEntry("gpus", "/spire/server", "/gpus", "gpu", "rack1"),
		newEntry("on-rack", "/racks/1", "/w/on-rack"),
		newEntry("on-gpu", "/gpus", "/w/on-gpu"),
		newEntry("nested", "/w/on-gpu", "/w/nested"),
		newEntry("loop", "/w/nested", "/gpus"),
		newEntry("below-expired", "/w/expired", "/w/below-expired"),
		newEntry("of-banned", "/spire/agent/test/banned", "/w/of-banned"),
		newEntry("of-nobody", "/spire/agent/test/nobody", "/w/of-nobody"),
	)
	tests := []struct {
		name  string
		agent *registry.Agent
		want  []string
	}{
		{"own, aliases and below", a, []string{"direct", "loop", "nested", "on-gpu", "on-rack"}},
		{"one alias", b, []string{"on-rack"}},
		{"banned", banned, nil},
		{"expired", gone, nil},
		{"not attested", newAgent("nobody"), nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, authorized(l.graph, tt.agent, start)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if got := authorized(l.graph, a, start.Add(-time.Second)); !slices.Contains(got, "below-expired") {
		t.Errorf("before its parent expires, want below-expired in %v", got)
	}
}

// One entry behind an alias touches all agents of the alias and nothing else;
// the list of agents is made once.
func TestTouchedBehindAnAlias(t *testing.T) {
	t.Parallel()
	l := &log{graph: New(td)}
	agents := make([]any, 5000)
	for i := range agents {
		agents[i] = newAgent(fmt.Sprint(i), "fleet")
	}
	l.apply(newEntry("alias", "/spire/server", "/fleet", "fleet"))
	if got := l.apply(agents...); len(got.Whole) != 5000 {
		t.Fatalf("new agents: want 5000 in Whole, got %d", len(got.Whole))
	}
	first := l.apply(newEntry("e1", "/fleet", "/w/1"))
	second := l.apply(newEntry("e2", "/fleet", "/w/2"), "e1")
	for _, got := range []Touched{first, second} {
		if len(got.Whole) != 0 || got.Reset || len(got.Groups) != 1 || len(got.Groups[0].Agents) != 5000 {
			t.Fatalf("want one group of 5000 agents, got %d groups, whole %v", len(got.Groups), got.Whole)
		}
	}
	if &first.Groups[0].Agents[0] != &second.Groups[0].Agents[0] {
		t.Error("the list of agents was made twice")
	}
	if diff := cmp.Diff([]string{"e2", "e1"}, second.Groups[0].Entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if got := l.apply(newEntry("other", "/elsewhere", "/w/3")); len(got.Groups) != 0 || len(got.Whole) != 0 {
		t.Errorf("an entry of nobody touches %+v", got)
	}
}

// A new serial number or version of an agent is no change of what it may have.
func TestTouchedNotByRenewal(t *testing.T) {
	t.Parallel()
	l := &log{graph: New(td)}
	l.apply(newAgent("a", "rack1"), newEntry("e", "/spire/agent/test/a", "/w"))
	renewed := newAgent("a", "rack1")
	renewed.Serial, renewed.Version, renewed.NotAfter = "2", "v2", start.Add(2*time.Hour)
	if got := l.apply(renewed); len(got.Whole) != 0 || len(got.Groups) != 0 {
		t.Errorf("renewal touches %+v", got)
	}
	if got := authorized(l.graph, renewed, start.Add(90*time.Minute)); len(got) != 1 {
		t.Errorf("after renewal, want the entry, got %v", got)
	}
}

// S14, S18: nothing is left of a banned or removed agent.
func TestBannedAgentHasNothing(t *testing.T) {
	t.Parallel()
	for _, gone := range []func(*registry.Agent) any{
		func(a *registry.Agent) any { b := a.Clone(); b.Banned = true; return b },
		func(a *registry.Agent) any { return a.ID },
	} {
		l := &log{graph: New(td)}
		a := newAgent("a", "rack1")
		l.apply(a, newEntry("alias", "/spire/server", "/fleet", "rack1"), newEntry("e", "/fleet", "/w"))
		if _, ok := l.graph.Lookup(a.ID, "e", start); !ok {
			t.Fatal("the agent does not have its entry")
		}
		got := l.apply(gone(a))
		if diff := cmp.Diff([]spiffeid.ID{a.ID}, got.Whole, cmp.Comparer(func(x, y spiffeid.ID) bool { return x == y })); diff != "" {
			t.Errorf("Whole (-want +got):\n%s", diff)
		}
		if _, ok := l.graph.Lookup(a.ID, "e", start); ok {
			t.Error("the agent still has its entry")
		}
		if len(l.graph.agents) != 0 || len(l.graph.agentsBy) != 0 {
			t.Error("the agent left something behind")
		}
	}
}

func TestResetForgetsEverything(t *testing.T) {
	t.Parallel()
	l := &log{graph: New(td)}
	a := newAgent("a")
	l.apply(a, newEntry("e", "/spire/agent/test/a", "/w"))
	got := l.graph.Apply(&registry.Commit{StoreID: "other", Revision: 1, Reset: true})
	if want := (Touched{StoreID: "other", Revision: 1, Reset: true}); !cmp.Equal(want, got) {
		t.Errorf("want %+v, got %+v", want, got)
	}
	if storeID, rev := l.graph.Position(); storeID != "other" || rev != 1 {
		t.Errorf("position is %s %d", storeID, rev)
	}
	if got := authorized(l.graph, a, start); len(got) != 0 {
		t.Errorf("after reset, got %v", got)
	}
}

// An alias, or an agent, with many entries below it goes with one change: from
// that revision on nobody has any of them, and those who had are told which.
func TestManyEntriesGoAtOnce(t *testing.T) {
	t.Parallel()
	const n = 20_000
	l := &log{graph: New(td)}
	a, other := newAgent("a", "rack"), newAgent("b", "rack")
	changes := []any{a, other, newEntry("alias", "/spire/server", "/fleet", "rack")}
	for i := range n {
		parent := "/fleet"
		if i%2 == 1 {
			parent = a.ID.Path()
		}
		changes = append(changes, newEntry(fmt.Sprint("e", i), parent, fmt.Sprint("/w/", i)))
	}
	l.apply(changes...)
	if got, also := len(authorized(l.graph, a, start)), len(authorized(l.graph, other, start)); got != n || also != n/2 {
		t.Fatalf("%d and %d entries are authorized, want %d and %d", got, also, n, n/2)
	}
	none := func(what string, a *registry.Agent, want int) {
		t.Helper()
		if got := authorized(l.graph, a, start); len(got) != want {
			t.Errorf("%s: %d entries are authorized to %s, want %d", what, len(got), a.ID, want)
		}
		for i := range n {
			_, ok := l.graph.Lookup(a.ID, fmt.Sprint("e", i), start)
			if ok != (want > 0 && i%2 == 1) {
				t.Fatalf("%s: Lookup of entry %d: %t", what, i, ok)
			}
		}
	}
	touched := l.apply("alias")
	none("without the alias", a, n/2)
	none("without the alias", other, 0)
	if len(touched.Groups) != 1 || len(touched.Groups[0].Agents) != 2 || len(touched.Groups[0].Entries) != n/2 {
		t.Errorf("the alias touches %d groups", len(touched.Groups))
	}
	touched = l.apply(a.ID)
	none("without the agent", a, 0)
	if !slices.Contains(touched.Whole, a.ID) {
		t.Errorf("the agent's going touches %v", touched.Whole)
	}
}

// A family that has grown keeps its sums, and keeps them right whatever becomes
// of its members.
func TestSumsOfALargeFamily(t *testing.T) {
	t.Parallel()
	l := &log{graph: New(td)}
	a := newAgent("a")
	l.apply(a)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 4 * summed {
		e := newEntry(fmt.Sprint("e", rnd.IntN(2*summed)), a.ID.Path(), "/w")
		switch rnd.IntN(8) {
		case 0:
			l.apply(e.ID)
		case 1:
			e.ParentID = id("/other")
			l.apply(e)
		default:
			l.apply(e)
		}
	}
	f := l.graph.families[a.ID.Path()]
	if len(f.members) <= summed || f.sums == nil {
		t.Fatalf("%d members, sums %t", len(f.members), f.sums != nil)
	}
	whole := l.graph.Snapshot(a.ID, start)
	all := func(uint8) bool { return true }
	got := l.graph.Compare(a.ID, func(*[feedv1.Buckets]uint64) func(uint8) bool { return all })
	if got.Buckets != whole.Buckets || len(got.Entries) != len(whole.Entries) {
		t.Errorf("%d entries, want %d, or other sums", len(got.Entries), len(whole.Entries))
	}
}

// bench100k is 100,000 entries and 5,000 agents behind one alias, 10,000 of the
// entries below it.
func bench100k() *registry.Commit {
	c := &registry.Commit{StoreID: "s", Revision: 1, Reset: true}
	add := func(e *registry.Entry) {
		e.ModRevision = 1
		c.Entries = append(c.Entries, registry.EntryChange{ID: e.ID, Now: e.Pack()})
	}
	add(newEntry("alias", "/spire/server", "/fleet", "fleet"))
	fleet := id("/fleet")
	for i := range 100_000 {
		e := newEntry(fmt.Sprintf("0197a5e0-0000-7000-8000-%012d", i), "/fleet", fmt.Sprintf("/ns/%d/sa/%d", i%100, i))
		e.ParentID = fleet
		if i >= 10_000 {
			e.ParentID = id(fmt.Sprintf("/spire/agent/test/%d", i%5000))
		}
		add(e)
	}
	for i := range 5000 {
		a := newAgent(fmt.Sprint(i), "fleet", fmt.Sprint(i))
		c.Agents = append(c.Agents, registry.AgentChange{ID: a.ID, Now: a})
	}
	return c
}

func BenchmarkBuild100k(b *testing.B) {
	c := bench100k()
	b.ReportAllocs()
	for b.Loop() {
		New(td).Apply(c)
	}
}

func BenchmarkLookup(b *testing.B) {
	g := New(td)
	g.Apply(bench100k())
	agent := id("/spire/agent/test/7")
	entry := fmt.Sprintf("0197a5e0-0000-7000-8000-%012d", 1234)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := g.Lookup(agent, entry, start); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkSnapshot10k(b *testing.B) {
	g := New(td)
	g.Apply(bench100k())
	agent := id("/spire/agent/test/7")
	b.ReportAllocs()
	for b.Loop() {
		if s := g.Snapshot(agent, start); len(s.Entries) != 10_018 {
			b.Fatal(len(s.Entries))
		}
	}
}

// An agent that has all of 10,000 entries comes back.
func BenchmarkCompareSame10k(b *testing.B) {
	g := New(td)
	g.Apply(bench100k())
	agent := id("/spire/agent/test/7")
	b.ReportAllocs()
	for b.Loop() {
		g.Compare(agent, func(*[feedv1.Buckets]uint64) func(uint8) bool { return nil })
	}
}

// One entry that reaches 5,000 agents through one alias.
func BenchmarkApplyFanOut(b *testing.B) {
	g := New(td)
	g.Apply(bench100k())
	e := newEntry("changing", "/fleet", "/w/changing")
	rev := store.Revision(1)
	b.ReportAllocs()
	for b.Loop() {
		rev++
		e = e.Clone()
		e.ModRevision = rev
		t := g.Apply(&registry.Commit{Revision: rev, Entries: []registry.EntryChange{{ID: e.ID, Now: e.Pack()}}})
		if len(t.Groups[0].Agents) != 5000 {
			b.Fatal("not all were touched")
		}
	}
}
