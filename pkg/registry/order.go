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
type order[T ordered] struct {
	// key is what is filtered: entries with the same are neighbours.
	key func(T) string
	// items appends what the order has of an entry.
	items func(out []T, p *Packed) []T
	tree  *btree.BTreeG[T] // nil until it is asked for
}

// ordered is an entry, or one of its parts.
type ordered interface {
	*Packed | partOf
	ID() string
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
		bySPIFFEID: &order[*Packed]{key: (*Packed).spiffeKey, items: one},
		byParent:   &order[*Packed]{key: (*Packed).parentKey, items: one},
		byHint:     &order[*Packed]{key: (*Packed).hint, items: having(wireHint)},
		downstream: &order[*Packed]{key: func(*Packed) string { return "" }, items: having(wireDownstream)},
		bySelector: &order[partOf]{key: partOf.text, items: partsIn(wireSelectors)},
		byDomain:   &order[partOf]{key: partOf.text, items: partsIn(wireFederatesWith)},
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

func (o *order[T]) less(a, b T) bool {
	if c := strings.Compare(o.key(a), o.key(b)); c != 0 {
		return c < 0
	}
	return a.ID() < b.ID()
}

// fill sorts by keys that lie side by side: sorting is nothing but comparing,
// and every look at an entry is one at a far place. The entries come in order of
// ID.
func (o *order[T]) fill(entries []*Packed) {
	type keyed struct {
		key  string
		at   int
		item T
	}
	var items []T
	var list []keyed
	for _, p := range entries {
		items = o.items(items[:0], p)
		for _, x := range items {
			list = append(list, keyed{o.key(x), len(list), x})
		}
	}
	slices.SortFunc(list, func(a, b keyed) int {
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		return a.at - b.at
	})
	o.tree = btree.NewBTreeGOptions(o.less, btree.Options{NoLocks: true})
	for _, x := range list {
		o.tree.Load(x.item)
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

// ID is the entry's.
func (x partOf) ID() string { return x.entry.ID() }

// text is the encoded selector, or the name of the trust domain.
func (x partOf) text() string {
	text, _ := cutText(x.entry.wire[x.at:])
	return text
}

func (x partOf) selector() attest.Selector { return selectorFrom(x.text()) }

func (p *Packed) spiffeKey() string {
	id, _, _ := p.names()
	return id
}

func (p *Packed) parentKey() string {
	_, id, _ := p.names()
	return id
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
