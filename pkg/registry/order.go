package registry

import (
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// orders are the tables of entries in the orders that filters ask for: each
// sorted by what is filtered, then by ID, so that a page of a filtered list is
// a seek and a walk. They are made when the first filter comes, because a server
// that starts has better things to do.
type orders struct {
	bySPIFFEID *btree.BTreeG[*Entry]
	byParent   *btree.BTreeG[*Entry]
	byHint     *btree.BTreeG[*Entry] // entries with a hint
	downstream *btree.BTreeG[*Entry] // downstream entries, by ID
	bySelector *btree.BTreeG[selectorEntry]
	byDomain   *btree.BTreeG[domainEntry]
}

// selectorEntry is an entry under one of its selectors.
type selectorEntry struct {
	selector *attest.Selector
	entry    *Entry
}

// domainEntry is an entry under a trust domain it federates with.
type domainEntry struct {
	domain spiffeid.TrustDomain
	entry  *Entry
}

// The comparisons look at the IDs only when they must: sorting is nothing but
// comparing.

func compareSPIFFEID(a, b *Entry) int {
	if c := strings.Compare(a.SPIFFEID.String(), b.SPIFFEID.String()); c != 0 {
		return c
	}
	return compareID(a, b)
}

func compareParent(a, b *Entry) int {
	if c := strings.Compare(a.ParentID.String(), b.ParentID.String()); c != 0 {
		return c
	}
	return compareID(a, b)
}

func compareHint(a, b *Entry) int {
	if c := strings.Compare(a.Hint, b.Hint); c != 0 {
		return c
	}
	return compareID(a, b)
}

func compareID(a, b *Entry) int { return strings.Compare(a.ID, b.ID) }

func compareSelector(a, b selectorEntry) int {
	if c := strings.Compare(a.selector.Value, b.selector.Value); c != 0 {
		return c
	}
	if c := strings.Compare(a.selector.Type, b.selector.Type); c != 0 {
		return c
	}
	return compareID(a.entry, b.entry)
}

func compareDomain(a, b domainEntry) int {
	if c := a.domain.Compare(b.domain); c != 0 {
		return c
	}
	return compareID(a.entry, b.entry)
}

// build makes a tree of items, which it sorts.
func build[T any](items []T, compare func(a, b T) int) *btree.BTreeG[T] {
	slices.SortFunc(items, compare)
	t := btree.NewBTreeGOptions(func(a, b T) bool { return compare(a, b) < 0 }, btree.Options{NoLocks: true})
	for _, it := range items {
		t.Load(it)
	}
	return t
}

func newOrders(entries []*Entry) *orders {
	var hinted, downstream []*Entry
	var selectors []selectorEntry
	var domains []domainEntry
	for _, e := range entries {
		if e.Hint != "" {
			hinted = append(hinted, e)
		}
		if e.Downstream {
			downstream = append(downstream, e)
		}
		for i := range e.Selectors {
			selectors = append(selectors, selectorEntry{&e.Selectors[i], e})
		}
		for _, td := range e.FederatesWith {
			domains = append(domains, domainEntry{td, e})
		}
	}
	o := &orders{}
	var wg sync.WaitGroup
	wg.Go(func() { o.bySelector = build(selectors, compareSelector) })
	wg.Go(func() { o.bySPIFFEID = build(slices.Clone(entries), compareSPIFFEID) })
	wg.Go(func() { o.byParent = build(slices.Clone(entries), compareParent) })
	wg.Go(func() { o.byDomain = build(domains, compareDomain) })
	wg.Go(func() { o.byHint = build(hinted, compareHint) })
	wg.Go(func() { o.downstream = build(downstream, compareID) })
	wg.Wait()
	return o
}

// copy shares all nodes until one side changes them.
func (o *orders) copy() *orders {
	if o == nil {
		return nil
	}
	return &orders{
		bySPIFFEID: o.bySPIFFEID.Copy(),
		byParent:   o.byParent.Copy(),
		byHint:     o.byHint.Copy(),
		downstream: o.downstream.Copy(),
		bySelector: o.bySelector.Copy(),
		byDomain:   o.byDomain.Copy(),
	}
}

// replace takes one version of an entry out and puts another in; either may be
// nil.
func (o *orders) replace(old, now *Entry) {
	if old != nil {
		o.bySPIFFEID.Delete(old)
		o.byParent.Delete(old)
		o.byHint.Delete(old)
		o.downstream.Delete(old)
		for i := range old.Selectors {
			o.bySelector.Delete(selectorEntry{&old.Selectors[i], old})
		}
		for _, td := range old.FederatesWith {
			o.byDomain.Delete(domainEntry{td, old})
		}
	}
	if now == nil {
		return
	}
	o.bySPIFFEID.Set(now)
	o.byParent.Set(now)
	if now.Hint != "" {
		o.byHint.Set(now)
	}
	if now.Downstream {
		o.downstream.Set(now)
	}
	for i := range now.Selectors {
		o.bySelector.Set(selectorEntry{&now.Selectors[i], now})
	}
	for _, td := range now.FederatesWith {
		o.byDomain.Set(domainEntry{td, now})
	}
}

// pending collects what was committed while orders are made of a copy.
type pending struct{ changes []change }

type change struct{ old, now *Entry }

// makeOrder makes the orders, if they are not there, without holding up
// commits: from a copy, to which what came meanwhile is added in the end.
func (ix *Index) makeOrder() {
	ix.ordering.Lock()
	defer ix.ordering.Unlock()
	for !ix.tryOrder() {
	}
}

// tryOrder fails only when the index was reset meanwhile.
func (ix *Index) tryOrder() bool {
	ix.mu.Lock()
	if ix.order != nil {
		ix.mu.Unlock()
		return true
	}
	entries := ix.entries.Copy()
	mine := &pending{}
	ix.pending = mine
	ix.mu.Unlock()

	o := newOrders(entries.Items())

	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.pending != mine {
		return false
	}
	for _, ch := range mine.changes {
		o.replace(ch.old, ch.now)
	}
	ix.order, ix.pending, ix.view = o, nil, nil
	return true
}

// cursor returns the next entry, or nil at the end.
type cursor func() *Entry

// walk starts at the first item not less than pivot; entry gives nil for an
// item that is beyond what is looked for.
func walk[T any](t *btree.BTreeG[T], pivot T, entry func(T) *Entry) cursor {
	it := t.Iter()
	ok := it.Seek(pivot)
	return func() *Entry {
		if !ok {
			return nil
		}
		e := entry(it.Item())
		if e == nil {
			ok = false
			return nil
		}
		ok = it.Next()
		return e
	}
}

// indexed says whether an order would help.
func (f *EntryFilter) indexed() bool {
	return !f.SPIFFEID.IsZero() || !f.ParentID.IsZero() || len(f.Selectors) > 0 || len(f.FederatesWith) > 0 ||
		f.Hint != nil && *f.Hint != "" || f.Downstream != nil && *f.Downstream
}

// candidates walks, in order of ID from after on, entries among which are all
// that the filter selects. Of the ways there are it takes the one with the
// fewest.
func (v *view) candidates(f *EntryFilter, after string) cursor {
	all := func() cursor {
		return walk(v.entries, &Entry{ID: after}, func(e *Entry) *Entry { return e })
	}
	if v.order == nil {
		return all()
	}
	ways := v.order.ways(f, after)
	if len(ways) == 0 {
		return all()
	}
	best := ways[0]
	if len(ways) > 1 {
		best = shortest(ways)
	}
	return best()
}

// ways are the orders that the filter can be answered from.
func (o *orders) ways(f *EntryFilter, after string) []func() cursor {
	var out []func() cursor
	if !f.SPIFFEID.IsZero() {
		out = append(out, func() cursor {
			return walk(o.bySPIFFEID, &Entry{SPIFFEID: f.SPIFFEID, ID: after}, func(e *Entry) *Entry {
				return only(e, e.SPIFFEID == f.SPIFFEID)
			})
		})
	}
	if !f.ParentID.IsZero() {
		out = append(out, func() cursor {
			return walk(o.byParent, &Entry{ParentID: f.ParentID, ID: after}, func(e *Entry) *Entry {
				return only(e, e.ParentID == f.ParentID)
			})
		})
	}
	if f.Hint != nil && *f.Hint != "" {
		out = append(out, func() cursor {
			return walk(o.byHint, &Entry{Hint: *f.Hint, ID: after}, func(e *Entry) *Entry {
				return only(e, e.Hint == *f.Hint)
			})
		})
	}
	if f.Downstream != nil && *f.Downstream {
		out = append(out, func() cursor {
			return walk(o.downstream, &Entry{ID: after}, func(e *Entry) *Entry { return e })
		})
	}
	out = append(out, setWays(f.SelectorMatch, f.Selectors, func(s attest.Selector) cursor {
		return o.withSelector(s, after)
	})...)
	return append(out, setWays(f.FederatesWithMatch, f.FederatesWith, func(td spiffeid.TrustDomain) cursor {
		return o.withDomain(td, after)
	})...)
}

func only(e *Entry, is bool) *Entry {
	if !is {
		return nil
	}
	return e
}

func (o *orders) withSelector(s attest.Selector, after string) cursor {
	return walk(o.bySelector, selectorEntry{&s, &Entry{ID: after}}, func(x selectorEntry) *Entry {
		return only(x.entry, *x.selector == s)
	})
}

func (o *orders) withDomain(td spiffeid.TrustDomain, after string) cursor {
	return walk(o.byDomain, domainEntry{td, &Entry{ID: after}}, func(x domainEntry) *Entry {
		return only(x.entry, x.domain == td)
	})
}

// maxMerge is up to how many members of a filter a union is walked; beyond, all
// entries are.
const maxMerge = 32

// setWays are the ways that a filter by a set offers: the entries of any one
// member when all of them are required, else the union.
func setWays[T any](m Match, members []T, of func(T) cursor) []func() cursor {
	var out []func() cursor
	switch {
	case len(members) == 0:
	case m.wantsAll():
		for _, member := range members[:min(len(members), maxMerge)] {
			out = append(out, func() cursor { return of(member) })
		}
	case len(members) <= maxMerge:
		out = append(out, func() cursor {
			cursors := make([]cursor, len(members))
			for i, member := range members {
				cursors[i] = of(member)
			}
			return union(cursors)
		})
	}
	return out
}

// union merges cursors, each in order of ID, into one without repeats.
func union(cursors []cursor) cursor {
	heads := make([]*Entry, len(cursors))
	for i, c := range cursors {
		heads[i] = c()
	}
	return func() *Entry {
		var least *Entry
		for _, h := range heads {
			if h != nil && (least == nil || h.ID < least.ID) {
				least = h
			}
		}
		for i, h := range heads {
			if least != nil && h != nil && h.ID == least.ID {
				heads[i] = cursors[i]()
			}
		}
		return least
	}
}

// shortest walks all ways side by side and takes the one that ends first, or
// any when none has ended after a page.
func shortest(ways []func() cursor) func() cursor {
	cursors := make([]cursor, len(ways))
	for i, w := range ways {
		cursors[i] = w()
	}
	for range MaxPage {
		for i, c := range cursors {
			if c() == nil {
				return ways[i]
			}
		}
	}
	return ways[0]
}
