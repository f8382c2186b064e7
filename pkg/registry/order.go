package registry

import (
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/credence-id/credence/pkg/attest"
)

// orders are the tables of entries in the orders that filters ask for: each
// sorted by what is filtered, then by ID, so that a page of a filtered list is
// a seek and a walk. Each is made when the first filter asks for it, because a
// server that starts has better things to do, and most never need all of them.
type orders struct {
	bySPIFFEID *order[*Packed]
	byParent   *order[*Packed]
	byHint     *order[*Packed] // entries with a hint
	downstream *order[*Packed] // downstream entries, by ID
	bySelector *order[partOf]
	byDomain   *order[partOf]
}

// order is one of them.
type order[T any] struct {
	compare func(a, b T) int
	// items appends what the order has of an entry.
	items func(out []T, p *Packed) []T
	tree  *btree.BTreeG[T] // nil until it is asked for
}

// ordering is an order of whatever it is of.
type ordering interface {
	made() bool
	// fill makes the order, of all entries there are.
	fill(entries []*Packed)
	// replace takes one version of an entry out and puts another in; either
	// may be nil.
	replace(old, now *Packed)
}

func newOrders() *orders {
	one := func(out []*Packed, p *Packed) []*Packed { return append(out, p) }
	return &orders{
		bySPIFFEID: &order[*Packed]{compare: compareSPIFFEID, items: one},
		byParent:   &order[*Packed]{compare: compareParent, items: one},
		byHint:     &order[*Packed]{compare: compareHint, items: having(wireHint)},
		downstream: &order[*Packed]{compare: compareID, items: having(wireDownstream)},
		bySelector: &order[partOf]{compare: compareSelector, items: partsIn(wireSelectors)},
		byDomain:   &order[partOf]{compare: compareDomain, items: partsIn(wireFederatesWith)},
	}
}

// having gives an entry that has a field.
func having(num protowire.Number) func([]*Packed, *Packed) []*Packed {
	return func(out []*Packed, p *Packed) []*Packed {
		for f := range p.fields() {
			if f.num == num {
				return append(out, p)
			}
		}
		return out
	}
}

// partsIn gives an entry under each of its fields of one number.
func partsIn(num protowire.Number) func([]partOf, *Packed) []partOf {
	return func(out []partOf, p *Packed) []partOf {
		for f := range p.fields() {
			if f.num == num {
				out = append(out, partOf{p, f.at})
			}
		}
		return out
	}
}

func (o *order[T]) made() bool { return o.tree != nil }

func (o *order[T]) fill(entries []*Packed) {
	items := make([]T, 0, len(entries))
	for _, p := range entries {
		items = o.items(items, p)
	}
	slices.SortFunc(items, o.compare)
	less := func(a, b T) bool { return o.compare(a, b) < 0 }
	o.tree = btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})
	for _, x := range items {
		o.tree.Load(x)
	}
}

func (o *order[T]) replace(old, now *Packed) {
	if o.tree == nil {
		return
	}
	var room [8]T
	if old != nil {
		for _, x := range o.items(room[:0], old) {
			o.tree.Delete(x)
		}
	}
	if now != nil {
		for _, x := range o.items(room[:0], now) {
			o.tree.Set(x)
		}
	}
}

// copy shares all nodes until one side changes them.
func (o *order[T]) copy() *order[T] {
	c := *o
	if c.tree != nil {
		c.tree = c.tree.Copy()
	}
	return &c
}

func (o *orders) all() []ordering {
	return []ordering{o.bySPIFFEID, o.byParent, o.byHint, o.downstream, o.bySelector, o.byDomain}
}

func (o *orders) copy() *orders {
	return &orders{
		bySPIFFEID: o.bySPIFFEID.copy(),
		byParent:   o.byParent.copy(),
		byHint:     o.byHint.copy(),
		downstream: o.downstream.copy(),
		bySelector: o.bySelector.copy(),
		byDomain:   o.byDomain.copy(),
	}
}

func (o *orders) replace(old, now *Packed) {
	for _, x := range o.all() {
		x.replace(old, now)
	}
}

// wanted are the orders that would help with a filter.
func (o *orders) wanted(f *EntryFilter) (out []ordering) {
	for _, x := range []struct {
		helps bool
		order ordering
	}{
		{!f.SPIFFEID.IsZero(), o.bySPIFFEID},
		{!f.ParentID.IsZero(), o.byParent},
		{f.Hint != nil && *f.Hint != "", o.byHint},
		{f.Downstream != nil && *f.Downstream, o.downstream},
		{len(f.Selectors) > 0, o.bySelector},
		{len(f.FederatesWith) > 0, o.byDomain},
	} {
		if x.helps {
			out = append(out, x.order)
		}
	}
	return out
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

// hint of the entry, or "".
func (p *Packed) hint() string {
	for f := range p.fields() {
		if f.num == wireHint {
			return f.text
		}
	}
	return ""
}

// pending collects what was committed while orders are made of a copy.
type pending struct{ changes []change }

type change struct{ old, now *Packed }

// makeOrder makes the orders that a filter wants and that are not there, without
// holding up commits: from a copy, to which what came meanwhile is added in the
// end.
func (ix *Index) makeOrder(f *EntryFilter) {
	if ix.hasOrder(f) {
		return
	}
	ix.ordering.Lock()
	defer ix.ordering.Unlock()
	for !ix.hasOrder(f) {
		ix.tryOrder(f)
	}
}

func (ix *Index) hasOrder(f *EntryFilter) bool {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return len(missing(ix.order.wanted(f))) == 0
}

func missing(list []ordering) []ordering {
	return slices.DeleteFunc(list, ordering.made)
}

// tryOrder makes nothing when the index was reset meanwhile.
func (ix *Index) tryOrder(f *EntryFilter) {
	ix.mu.Lock()
	o := ix.order.copy()
	entries := ix.entries.Copy()
	mine := &pending{}
	ix.pending = mine
	ix.mu.Unlock()

	fresh := missing(o.wanted(f))
	list := entries.Items()
	var wg sync.WaitGroup
	for _, x := range fresh {
		wg.Go(func() { x.fill(list) })
	}
	wg.Wait()

	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.pending != mine {
		return
	}
	// The others are in o as they were when it was copied.
	for _, ch := range mine.changes {
		o.replace(ch.old, ch.now)
	}
	ix.order, ix.pending, ix.view = o, nil, nil
}
