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
	bySPIFFEID *btree.BTreeG[*Packed]
	byParent   *btree.BTreeG[*Packed]
	byHint     *btree.BTreeG[*Packed] // entries with a hint
	downstream *btree.BTreeG[*Packed] // downstream entries, by ID
	bySelector *btree.BTreeG[partOf]
	byDomain   *btree.BTreeG[partOf]
}

// partOf is an entry under one of its selectors, or of the trust domains it
// federates with, which begins at a place of its wire form.
type partOf struct {
	entry *Packed
	at    uint32
}

// text is the encoded selector, or the name of the trust domain.
func (x partOf) text() string {
	text, _ := cutText(x.entry.wire[x.at:])
	return text
}

func (x partOf) selector() attest.Selector { return selectorFrom(x.text()) }

// The comparisons look at the IDs only when they must: sorting is nothing but
// comparing.

func compareSPIFFEID(a, b *Packed) int {
	x, _, _ := a.names()
	y, _, _ := b.names()
	if c := strings.Compare(x, y); c != 0 {
		return c
	}
	return compareID(a, b)
}

func compareParent(a, b *Packed) int {
	_, x, _ := a.names()
	_, y, _ := b.names()
	if c := strings.Compare(x, y); c != 0 {
		return c
	}
	return compareID(a, b)
}

func compareHint(a, b *Packed) int {
	if c := strings.Compare(a.hint(), b.hint()); c != 0 {
		return c
	}
	return compareID(a, b)
}

func compareID(a, b *Packed) int { return strings.Compare(a.ID(), b.ID()) }

func compareSelector(a, b partOf) int {
	x, y := a.selector(), b.selector()
	if c := strings.Compare(x.Value, y.Value); c != 0 {
		return c
	}
	if c := strings.Compare(x.Type, y.Type); c != 0 {
		return c
	}
	return compareID(a.entry, b.entry)
}

func compareDomain(a, b partOf) int {
	if c := strings.Compare(a.text(), b.text()); c != 0 {
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

func newOrders(entries []*Packed) *orders {
	var hinted, downstream []*Packed
	var selectors, domains []partOf
	for _, p := range entries {
		parts := p.parts()
		if parts.hint {
			hinted = append(hinted, p)
		}
		if parts.downstream {
			downstream = append(downstream, p)
		}
		selectors = append(selectors, parts.selectors...)
		domains = append(domains, parts.domains...)
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

// parts are what an entry is found by.
type parts struct {
	hint, downstream   bool
	selectors, domains []partOf
}

func (p *Packed) parts() (out parts) {
	for f := range p.fields() {
		switch f.num {
		case wireHint:
			out.hint = true
		case wireDownstream:
			out.downstream = true
		case wireSelectors:
			out.selectors = append(out.selectors, partOf{p, f.at})
		case wireFederatesWith:
			out.domains = append(out.domains, partOf{p, f.at})
		}
	}
	return out
}

// hint of the entry, or "".
func (p *Packed) hint() string {
	for f := range p.fields() {
		if f.num == wireHint {
			return f.text
		}
	}
	return ""
}

// replace takes one version of an entry out and puts another in; either may be
// nil.
func (o *orders) replace(old, now *Packed) {
	if old != nil {
		parts := old.parts()
		o.bySPIFFEID.Delete(old)
		o.byParent.Delete(old)
		o.byHint.Delete(old)
		o.downstream.Delete(old)
		for _, x := range parts.selectors {
			o.bySelector.Delete(x)
		}
		for _, x := range parts.domains {
			o.byDomain.Delete(x)
		}
	}
	if now == nil {
		return
	}
	parts := now.parts()
	o.bySPIFFEID.Set(now)
	o.byParent.Set(now)
	if parts.hint {
		o.byHint.Set(now)
	}
	if parts.downstream {
		o.downstream.Set(now)
	}
	for _, x := range parts.selectors {
		o.bySelector.Set(x)
	}
	for _, x := range parts.domains {
		o.byDomain.Set(x)
	}
}

// pending collects what was committed while orders are made of a copy.
type pending struct{ changes []change }

type change struct{ old, now *Packed }

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
type cursor func() *Packed

// walk starts at the first item not less than pivot; entry gives nil for an
// item that is beyond what is looked for.
func walk[T any](t *btree.BTreeG[T], pivot T, entry func(T) *Packed) cursor {
	it := t.Iter()
	ok := it.Seek(pivot)
	return func() *Packed {
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
		return walk(v.entries, packID(after), func(p *Packed) *Packed { return p })
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
	way := func(t *btree.BTreeG[*Packed], from *Entry, is func(*Packed) bool) {
		from.ID = after
		pivot := from.Pack()
		out = append(out, func() cursor {
			return walk(t, pivot, func(p *Packed) *Packed { return only(p, is(p)) })
		})
	}
	if !f.SPIFFEID.IsZero() {
		is := sameID(f.SPIFFEID)
		way(o.bySPIFFEID, &Entry{SPIFFEID: f.SPIFFEID}, func(p *Packed) bool { return is(p.SPIFFEID()) })
	}
	if !f.ParentID.IsZero() {
		is := sameID(f.ParentID)
		way(o.byParent, &Entry{ParentID: f.ParentID}, func(p *Packed) bool { return is(p.ParentID()) })
	}
	if f.Hint != nil && *f.Hint != "" {
		way(o.byHint, &Entry{Hint: *f.Hint}, func(p *Packed) bool { return p.hint() == *f.Hint })
	}
	if f.Downstream != nil && *f.Downstream {
		way(o.downstream, &Entry{}, func(*Packed) bool { return true })
	}
	out = append(out, setWays(f.SelectorMatch, f.Selectors, func(s attest.Selector) cursor {
		return o.withSelector(s, after)
	})...)
	return append(out, setWays(f.FederatesWithMatch, f.FederatesWith, func(td spiffeid.TrustDomain) cursor {
		return o.withDomain(td, after)
	})...)
}

func only(p *Packed, is bool) *Packed {
	if !is {
		return nil
	}
	return p
}

func (o *orders) withSelector(s attest.Selector, after string) cursor {
	pivot := (&Entry{ID: after, Selectors: attest.Selectors{s}}).Pack().parts().selectors[0]
	return walk(o.bySelector, pivot, func(x partOf) *Packed { return only(x.entry, x.selector() == s) })
}

func (o *orders) withDomain(td spiffeid.TrustDomain, after string) cursor {
	pivot := (&Entry{ID: after, FederatesWith: []spiffeid.TrustDomain{td}}).Pack().parts().domains[0]
	return walk(o.byDomain, pivot, func(x partOf) *Packed { return only(x.entry, x.text() == td.Name()) })
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
	heads := make([]*Packed, len(cursors))
	for i, c := range cursors {
		heads[i] = c()
	}
	return func() *Packed {
		var least *Packed
		for _, h := range heads {
			if h != nil && (least == nil || h.ID() < least.ID()) {
				least = h
			}
		}
		for i, h := range heads {
			if least != nil && h != nil && h.ID() == least.ID() {
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
