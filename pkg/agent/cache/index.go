package cache

import (
	"cmp"
	"slices"

	"github.com/credence-id/credence/pkg/attest"
)

// index finds the records whose selectors a workload has all of. Each record is
// listed under one selector only, the rarest of its own, so that a selector
// shared by thousands of entries costs a workload nothing.
type index struct {
	count   map[attest.Selector]int // live records that have the selector
	anchors map[attest.Selector]*anchored
	size    int // records listed
}

type anchored struct {
	records []*record
	// recheckAt is the size at which the records are listed anew: what was
	// rare when a record came need not be any more.
	recheckAt int
}

const firstRecheck = 16

func newIndex() index {
	return index{count: map[attest.Selector]int{}, anchors: map[attest.Selector]*anchored{}}
}

func (x *index) add(r *record) {
	x.size++
	for _, s := range r.entry.selectors {
		x.count[s]++
	}
	x.place(r)
	if a := x.anchors[r.anchor]; len(a.records) >= a.recheckAt {
		x.recheck(r.anchor)
	}
}

func (x *index) remove(r *record) {
	x.size--
	for _, s := range r.entry.selectors {
		if x.count[s]--; x.count[s] == 0 {
			delete(x.count, s)
		}
	}
	a := x.anchors[r.anchor]
	last := len(a.records) - 1
	a.records[r.anchorAt] = a.records[last]
	a.records[r.anchorAt].anchorAt = r.anchorAt
	a.records[last] = nil
	a.records = a.records[:last]
	if last == 0 {
		delete(x.anchors, r.anchor)
	}
}

func (x *index) place(r *record) {
	r.anchor = slices.MinFunc(r.entry.selectors, func(a, b attest.Selector) int {
		return cmp.Compare(x.count[a], x.count[b])
	})
	a := x.anchors[r.anchor]
	if a == nil {
		a = &anchored{recheckAt: firstRecheck}
		x.anchors[r.anchor] = a
	}
	r.anchorAt = len(a.records)
	a.records = append(a.records, r)
}

func (x *index) recheck(s attest.Selector) {
	records := x.anchors[s].records
	x.anchors[s] = &anchored{}
	for _, r := range records {
		x.place(r)
	}
	a := x.anchors[s]
	a.recheckAt = max(firstRecheck, 2*len(a.records))
	if len(a.records) == 0 {
		delete(x.anchors, s)
	}
}

// match returns the records whose selectors are all in have, by entry ID.
func (x *index) match(have attest.Selectors) []*record {
	var out []*record
	for _, s := range have {
		a := x.anchors[s]
		if a == nil {
			continue
		}
		for _, r := range a.records {
			if have.Contains(r.entry.selectors) {
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, func(a, b *record) int { return cmp.Compare(a.entry.id, b.entry.id) })
	return out
}

// needs is Cache.Needs. A record that could match is listed under a selector that
// is known, missing, or of another type.
func (x *index) needs(kind string, known attest.Selectors, missing func(attest.Selector) bool) bool {
	could := func(r *record) bool { return couldMatch(r.entry.selectors, kind, known, missing) }
	for _, s := range known {
		if a := x.anchors[s]; a != nil && slices.ContainsFunc(a.records, could) {
			return true
		}
	}
	for s, a := range x.anchors {
		if (s.Type != kind || missing(s)) && slices.ContainsFunc(a.records, could) {
			return true
		}
	}
	return false
}

// couldMatch looks at one record's selectors.
func couldMatch(selectors attest.Selectors, kind string, known attest.Selectors, missing func(attest.Selector) bool) bool {
	some := false
	for i, s := range selectors {
		switch {
		case s.Type != kind:
		case missing(s):
			some = some || !known.Contains(selectors[i:i+1])
		case !known.Contains(selectors[i : i+1]):
			return false
		}
	}
	return some
}
