package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// drawn is a small world of entries, agents and filters, so that they meet.
type drawn struct{ *rapid.T }

func (d drawn) id(label string) spiffeid.ID {
	return id(fmt.Sprintf("/%s/%d", label, rapid.IntRange(0, 2).Draw(d.T, label)))
}

func (d drawn) selectors(least int) attest.Selectors {
	return sel(rapid.SliceOfN(rapid.SampledFrom([]string{"a:1", "a:2", "b:1", "b:2", "c:1"}), least, 4).Draw(d.T, "selectors")...)
}

func (d drawn) domains() (out []spiffeid.TrustDomain) {
	for _, n := range rapid.SliceOfN(rapid.SampledFrom([]string{"x", "y", "z"}), 0, 3).Draw(d.T, "domains") {
		out = append(out, spiffeid.RequireTrustDomainFromString(n))
	}
	return normalizeDomains(out)
}

func (d drawn) entry(entryID string) *Entry {
	e := &Entry{
		ID: entryID, SPIFFEID: d.id("w"), ParentID: d.id("p"), Selectors: d.selectors(1), FederatesWith: d.domains(),
		Hint:       rapid.SampledFrom([]string{"", "", "h", "i"}).Draw(d.T, "hint"),
		Downstream: rapid.Bool().Draw(d.T, "downstream"),
	}
	if rapid.IntRange(0, 4).Draw(d.T, "expires") == 0 {
		e.ExpiresAt = start.Add(time.Duration(rapid.IntRange(-1, 1).Draw(d.T, "hours")) * time.Hour)
	}
	return e
}

func (d drawn) commit(rev store.Revision) *Commit {
	c := &Commit{StoreID: "s", Revision: rev}
	for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 30), 0, 12, rapid.ID).Draw(d.T, "entries") {
		ch := EntryChange{ID: fmt.Sprintf("e%02d", n)}
		if rapid.IntRange(0, 3).Draw(d.T, "kept") != 0 {
			ch.Now = d.entry(ch.ID).Pack()
		}
		c.Entries = append(c.Entries, ch)
	}
	for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 8), 0, 3, rapid.ID).Draw(d.T, "agents") {
		ch := AgentChange{ID: id(fmt.Sprintf("/spire/agent/x/%d", n))}
		if rapid.IntRange(0, 3).Draw(d.T, "kept") != 0 {
			ch.Now = d.agent(ch.ID)
		}
		c.Agents = append(c.Agents, ch)
	}
	if rapid.IntRange(0, 15).Draw(d.T, "reset") == 0 {
		c.Reset = true
		c.Entries = slices.DeleteFunc(c.Entries, func(ch EntryChange) bool { return ch.Now == nil })
		c.Agents = slices.DeleteFunc(c.Agents, func(ch AgentChange) bool { return ch.Now == nil })
		slices.SortFunc(c.Entries, func(a, b EntryChange) int { return strings.Compare(a.ID, b.ID) })
	}
	return c
}

func (d drawn) agent(agentID spiffeid.ID) *Agent {
	return &Agent{
		ID: agentID, AttestationType: rapid.SampledFrom([]string{"x", "y"}).Draw(d.T, "type"), Selectors: d.selectors(0),
		Banned: rapid.Bool().Draw(d.T, "banned"), CanReattest: rapid.Bool().Draw(d.T, "reattest"),
		NotAfter:     start.Add(time.Duration(rapid.IntRange(0, 3).Draw(d.T, "not after")) * time.Hour),
		NextNotAfter: start.Add(time.Duration(rapid.IntRange(0, 3).Draw(d.T, "next not after")) * time.Hour),
	}
}

func maybe[T any](d drawn, label string, draw func() T) (out T) {
	if rapid.IntRange(0, 2).Draw(d.T, label) == 0 {
		return draw()
	}
	return out
}

func (d drawn) match() Match { return Match(rapid.IntRange(0, 3).Draw(d.T, "match")) }

func (d drawn) entryFilter() EntryFilter {
	return EntryFilter{
		SPIFFEID:           maybe(d, "by id", func() spiffeid.ID { return d.id("w") }),
		ParentID:           maybe(d, "by parent", func() spiffeid.ID { return d.id("p") }),
		Selectors:          maybe(d, "by selectors", func() attest.Selectors { return d.selectors(0) }),
		SelectorMatch:      d.match(),
		FederatesWith:      maybe(d, "by domains", d.domains),
		FederatesWithMatch: d.match(),
		Hint: maybe(d, "by hint", func() *string {
			h := rapid.SampledFrom([]string{"", "h", "i", "j"}).Draw(d.T, "hint")
			return &h
		}),
		Downstream: maybe(d, "by downstream", func() *bool { b := rapid.Bool().Draw(d.T, "downstream"); return &b }),
	}
}

// naive is the meaning of the four ways to match, by their documentation.
func naive[T comparable](m Match, have, want []T) bool {
	inside := func(a, b []T) bool {
		for _, x := range a {
			if !slices.Contains(b, x) {
				return false
			}
		}
		return true
	}
	switch m {
	case MatchExact:
		return inside(have, want) && inside(want, have)
	case MatchSubset:
		return len(have) > 0 && inside(have, want)
	case MatchSuperset:
		return inside(want, have)
	default:
		return slices.ContainsFunc(have, func(x T) bool { return slices.Contains(want, x) })
	}
}

func naiveEntry(f EntryFilter, e *Entry) bool {
	return (f.SPIFFEID.IsZero() || f.SPIFFEID == e.SPIFFEID) && (f.ParentID.IsZero() || f.ParentID == e.ParentID) &&
		(f.Hint == nil || *f.Hint == e.Hint) && (f.Downstream == nil || *f.Downstream == e.Downstream) &&
		(len(f.Selectors) == 0 || naive(f.SelectorMatch, e.Selectors, f.Selectors)) &&
		(len(f.FederatesWith) == 0 || naive(f.FederatesWithMatch, e.FederatesWith, f.FederatesWith)) &&
		!e.Expired(start)
}

func naiveAgent(f AgentFilter, a *Agent) bool {
	return (f.AttestationType == "" || f.AttestationType == a.AttestationType) && (f.Banned == nil || *f.Banned == a.Banned) &&
		(f.CanReattest == nil || *f.CanReattest == a.CanReattest) &&
		(len(f.Selectors) == 0 || naive(f.SelectorMatch, a.Selectors, f.Selectors)) &&
		(f.ExpiresBefore.IsZero() || a.NotAfter.Before(f.ExpiresBefore) && a.NextNotAfter.Before(f.ExpiresBefore))
}

// The index, filtered and paged in every way, is a map that is looked through.
func TestIndexIsTheModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		d := drawn{rt}
		ix := NewIndex()
		entries, agents := map[string]*Entry{}, map[string]*Agent{}
		for rev := store.Revision(1); rev <= 6; rev++ {
			c := d.commit(rev)
			ix.Apply(c)
			if c.Reset {
				clear(entries)
				clear(agents)
			}
			for _, ch := range c.Entries {
				if delete(entries, ch.ID); ch.Now != nil {
					entries[ch.ID] = ch.Now.Entry()
				}
			}
			for _, ch := range c.Agents {
				if agents[ch.ID.String()] = ch.Now; ch.Now == nil {
					delete(agents, ch.ID.String())
				}
			}
			checkEntries(d, ix, entries)
			checkAgents(d, ix, agents)
		}
	})
}

func checkEntries(d drawn, ix *Index, entries map[string]*Entry) {
	for n := range 31 {
		entryID := fmt.Sprintf("e%02d", n)
		want := entries[entryID]
		if want != nil && want.Expired(start) {
			want = nil
		}
		if got, ok := ix.Entry(entryID, start); !reflect.DeepEqual(got, want) || ok != (want != nil) {
			d.Fatalf("Entry(%s): got %v, want %v", entryID, got, want)
		}
	}
	for range 3 {
		f := d.entryFilter()
		var want []string
		for _, entryID := range slices.Sorted(maps.Keys(entries)) {
			if naiveEntry(f, entries[entryID]) {
				want = append(want, entryID)
			}
		}
		limit := rapid.IntRange(1, 5).Draw(d.T, "limit")
		got := pages(d, limit, func(after string) ([]string, string) {
			list, next := ix.ListEntries(f, after, limit, start)
			return ids(list, entryID), next
		})
		if diff := cmp.Diff(want, got); diff != "" {
			d.Fatalf("%+v (-want +got):\n%s", f, diff)
		}
		if n := ix.CountEntries(f, start); n != len(want) {
			d.Fatalf("%+v: count is %d, want %d", f, n, len(want))
		}
	}
}

func checkAgents(d drawn, ix *Index, agents map[string]*Agent) {
	for n := range 9 {
		agentID := id(fmt.Sprintf("/spire/agent/x/%d", n))
		if got, ok := ix.Agent(agentID); got != agents[agentID.String()] || ok != (got != nil) {
			d.Fatalf("Agent(%s): got %v", agentID, got)
		}
	}
	f := AgentFilter{
		AttestationType: maybe(d, "by type", func() string { return "x" }),
		Selectors:       maybe(d, "by selectors", func() attest.Selectors { return d.selectors(0) }),
		SelectorMatch:   d.match(),
		Banned:          maybe(d, "by banned", func() *bool { b := rapid.Bool().Draw(d.T, "banned"); return &b }),
		CanReattest:     maybe(d, "by reattest", func() *bool { b := rapid.Bool().Draw(d.T, "reattest"); return &b }),
		ExpiresBefore:   maybe(d, "by expiry", func() time.Time { return start.Add(2 * time.Hour) }),
	}
	var want []string
	for _, agentID := range slices.Sorted(maps.Keys(agents)) {
		if naiveAgent(f, agents[agentID]) {
			want = append(want, agentID)
		}
	}
	limit := rapid.IntRange(1, 3).Draw(d.T, "limit")
	got := pages(d, limit, func(after string) ([]string, string) {
		list, next := ix.ListAgents(f, after, limit)
		return ids(list, func(a *Agent) string { return a.ID.String() }), next
	})
	if diff := cmp.Diff(want, got); diff != "" {
		d.Fatalf("%+v (-want +got):\n%s", f, diff)
	}
	if n := ix.CountAgents(f); n != len(want) {
		d.Fatalf("%+v: count is %d, want %d", f, n, len(want))
	}
}

// pages reads a whole list, holding each page to its limit.
func pages(d drawn, limit int, list func(after string) ([]string, string)) (out []string) {
	for after := ""; ; {
		page, next := list(after)
		if len(page) > limit || next != "" && (len(page) != limit || next != page[limit-1]) {
			d.Fatalf("page of %v after %q, next %q, limit %d", page, after, next, limit)
		}
		out = append(out, page...)
		if next == "" {
			return out
		}
		after = next
	}
}

// indexOf returns an index of n entries.
func indexOf(n int) *Index {
	c := &Commit{StoreID: "s", Revision: 1, Reset: true}
	parents := make([]spiffeid.ID, 100)
	for i := range parents {
		parents[i] = id(fmt.Sprintf("/spire/agent/x/%d", i))
	}
	for i := range n {
		e := newEntry("/p", fmt.Sprintf("/ns/%d/sa/%d", i%100, i), fmt.Sprintf("unix:uid:%d", i%1000), "unix:gid:1")
		e.ID, e.ParentID = fmt.Sprintf("0197a5e0-0000-7000-8000-%012d", i), parents[i%100]
		c.Entries = append(c.Entries, EntryChange{ID: e.ID, Now: e.Pack()})
	}
	ix := NewIndex()
	ix.Apply(c)
	return ix
}

// S12: what a client asks for as a page's size costs nothing.
func TestS12_PageSizeIsCapped(t *testing.T) {
	// Not parallel: it measures allocations.
	ix := indexOf(5000)
	for _, size := range []int{math.MaxInt32, math.MaxInt, MaxPage + 1, MaxPage, 0, -1, math.MinInt32} {
		list, next := ix.ListEntries(EntryFilter{}, "", size, start)
		if len(list) != MaxPage || next != list[MaxPage-1].ID {
			t.Errorf("page_size %d: got %d entries, next %q", size, len(list), next)
		}
	}
	gid := EntryFilter{ParentID: id("/spire/agent/x/7")}
	if list, next := ix.ListEntries(gid, "", math.MaxInt32, start); len(list) != 50 || next != "" {
		t.Errorf("filtered: got %d entries, next %q", len(list), next)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const calls = 100
	for range calls {
		ix.ListPacked(gid, "", math.MaxInt32, start)
		ix.ListAgents(AgentFilter{}, "", math.MaxInt32)
	}
	runtime.ReadMemStats(&after)
	if per := (after.TotalAlloc - before.TotalAlloc) / calls; per > 16<<10 {
		t.Errorf("a page of 50 entries with page_size 2^31-1 allocates %d bytes", per)
	}
}

func TestWaitFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ix := NewIndex()
		var reached sync.Map
		var wg sync.WaitGroup
		for _, rev := range []store.Revision{0, 1, 2, 5} {
			wg.Go(func() {
				if err := ix.WaitFor(t.Context(), rev); err != nil {
					t.Errorf("revision %d: %v", rev, err)
				}
				reached.Store(rev, true)
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if err := ix.WaitFor(ctx, 9); !errors.Is(err, context.Canceled) {
				t.Errorf("canceled: got %v", err)
			}
		})
		synctest.Wait()
		for _, step := range []struct {
			at   store.Revision
			want []store.Revision
		}{{0, []store.Revision{0}}, {1, []store.Revision{0, 1}}, {4, []store.Revision{0, 1, 2}}, {7, []store.Revision{0, 1, 2, 5}}} {
			before := []store.Revision{}
			ix.Apply(&Commit{StoreID: "s", Revision: step.at, Reset: step.at == 0})
			synctest.Wait()
			reached.Range(func(k, _ any) bool { before = append(before, k.(store.Revision)); return true })
			slices.Sort(before)
			if diff := cmp.Diff(step.want, before); diff != "" {
				t.Errorf("at revision %d (-want +got):\n%s", step.at, diff)
			}
		}
		cancel()
		wg.Wait()
		if len(ix.waiters) != 0 {
			t.Errorf("%d waiters are left", len(ix.waiters))
		}
		if id, rev, ok := ix.Position(); id != "s" || rev != 7 || !ok {
			t.Errorf("position is %s %d %t", id, rev, ok)
		}
	})
}

// Readers beside Apply: every commit moves one entry from one parent to the
// other, so that at any revision exactly one of the two has it.
func TestIndexReadersSeeWholeCommits(t *testing.T) {
	t.Parallel()
	ix := NewIndex()
	commit := func(rev store.Revision) *Commit {
		c := &Commit{StoreID: "s", Revision: rev, Reset: rev%50 == 1}
		for i := range 20 {
			e := newEntry(fmt.Sprintf("/p/%d", rev%2), "/w", fmt.Sprintf("x:%d", rev))
			e.ID, e.ModRevision = fmt.Sprintf("e%02d", i), rev
			c.Entries = append(c.Entries, EntryChange{ID: e.ID, Now: e.Pack()})
		}
		return c
	}
	ix.Apply(commit(1))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for last := store.Revision(0); ; {
				f := []EntryFilter{{}, {SPIFFEID: id("/w")}, {ParentID: id("/p/1")}, {Selectors: sel("x:1", "x:2", "x:3"), SelectorMatch: MatchAny}}[n]
				list, _ := ix.ListEntries(f, "", 0, start)
				for _, e := range list {
					if e.ModRevision != list[0].ModRevision || e.ModRevision < last {
						t.Errorf("a list of revision %d, after one of %d, has an entry of revision %d", list[0].ModRevision, last, e.ModRevision)
						return
					}
				}
				if n < 2 && len(list) != 20 || len(list) != 0 && len(list) != 20 {
					t.Errorf("filter %d: %d entries of 20", n, len(list))
					return
				}
				if len(list) > 0 {
					last = list[0].ModRevision
				}
				ix.Entry("e01", start)
				ix.Agent(id("/spire/agent/x/y"))
				ix.Bundle(td)
				ix.Bundles()
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for rev := store.Revision(2); rev < 2000; rev++ {
		ix.Apply(commit(rev))
	}
	close(done)
	wg.Wait()
}

func BenchmarkIndexReset100k(b *testing.B) {
	c := &Commit{Reset: true}
	for _, p := range indexOf(100_000).entries.Items() {
		c.Entries = append(c.Entries, EntryChange{ID: p.ID(), Now: p})
	}
	for b.Loop() {
		NewIndex().Apply(c)
	}
}

// The first filter of each kind.
func BenchmarkMakeOrder(b *testing.B) {
	n := 100_000
	if os.Getenv("SOAK") != "" {
		n = 1_000_000
	}
	entries := indexOf(n).entries.Items()
	o := newOrders()
	for name, x := range map[string]ordering{"spiffe_id": o.bySPIFFEID, "parent": o.byParent, "selector": o.bySelector} {
		b.Run(fmt.Sprint(name, "/", n), func(b *testing.B) {
			for b.Loop() {
				x.fill(entries)
			}
		})
	}
}

func BenchmarkList100k(b *testing.B) {
	ix := indexOf(100_000)
	for b.Loop() {
		n := 0
		for after := ""; ; {
			list, next := ix.ListEntries(EntryFilter{}, after, 1000, start)
			n += len(list)
			if after = next; next == "" {
				break
			}
		}
		if n != 100_000 {
			b.Fatal(n)
		}
	}
}

func BenchmarkListFiltered(b *testing.B) {
	ix := indexOf(100_000)
	for name, f := range map[string]EntryFilter{
		"spiffe_id": {SPIFFEID: id("/ns/7/sa/4007")},
		"parent":    {ParentID: id("/spire/agent/x/7")},
		"selectors": {Selectors: sel("unix:gid:1", "unix:uid:77")},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if list, _ := ix.ListEntries(f, "", 50, start); len(list) == 0 {
					b.Fatal("found nothing")
				}
			}
		})
	}
}

func BenchmarkApplyOne(b *testing.B) {
	ix := indexOf(100_000)
	ix.ListEntries(EntryFilter{ParentID: id("/p")}, "", 0, start)
	e := newEntry("/p", "/w/changing")
	e.ID = "changing"
	for b.Loop() {
		e = e.Clone()
		ix.Apply(&Commit{Entries: []EntryChange{{ID: e.ID, Now: e.Pack()}}})
	}
}
