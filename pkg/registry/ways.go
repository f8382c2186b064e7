package registry

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/tidwall/btree"

	"github.com/credence-id/credence/pkg/attest"
)

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

// candidates walks, in order of ID from after on, entries among which are all
// that the filter selects. Of the ways there are it takes the one with the
// fewest.
func (v *view) candidates(f *EntryFilter, after string) cursor {
	all := func() cursor {
		return walk(v.entries, packID(after), func(p *Packed) *Packed { return p })
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
	way := func(o *order[*Packed], from *Entry, is func(*Packed) bool) {
		if !o.made() {
			return // The index was reset since it was asked for.
		}
		from.ID = after
		pivot := from.Pack()
		out = append(out, func() cursor {
			return walk(o.tree, pivot, func(p *Packed) *Packed { return only(p, is(p)) })
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
	if o.bySelector.made() {
		out = append(out, setWays(f.SelectorMatch, f.Selectors, func(s attest.Selector) cursor {
			return o.withSelector(s, after)
		})...)
	}
	if o.byDomain.made() {
		out = append(out, setWays(f.FederatesWithMatch, f.FederatesWith, func(td spiffeid.TrustDomain) cursor {
			return o.withDomain(td, after)
		})...)
	}
	return out
}

func only(p *Packed, is bool) *Packed {
	if !is {
		return nil
	}
	return p
}

func (o *orders) withSelector(s attest.Selector, after string) cursor {
	pivot := o.bySelector.items(nil, (&Entry{ID: after, Selectors: attest.Selectors{s}}).Pack())[0]
	return walk(o.bySelector.tree, pivot, func(x partOf) *Packed { return only(x.entry, x.selector() == s) })
}

func (o *orders) withDomain(td spiffeid.TrustDomain, after string) cursor {
	pivot := o.byDomain.items(nil, (&Entry{ID: after, FederatesWith: []spiffeid.TrustDomain{td}}).Pack())[0]
	return walk(o.byDomain.tree, pivot, func(x partOf) *Packed { return only(x.entry, x.text() == td.Name()) })
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
