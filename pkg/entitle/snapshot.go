package entitle

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// Snapshot is what an agent may have at one revision.
type Snapshot struct {
	StoreID  string
	Revision store.Revision
	// Entries are in no order. They are shared and must not be changed.
	Entries []*registry.Packed
	// Buckets are the sums over all that the agent may have, see feedv1.
	Buckets [feedv1.Buckets]uint64
	// Domains are the trust domains that one of these entries federates with.
	Domains map[spiffeid.TrustDomain]struct{}
}

// Snapshot returns what the agent may have at now, all of one revision. With the
// zero time nothing has expired.
func (g *Graph) Snapshot(id spiffeid.ID, now time.Time) Snapshot {
	g.mu.RLock()
	defer g.mu.RUnlock()
	s := Snapshot{StoreID: g.storeID, Revision: g.revision, Domains: make(map[spiffeid.TrustDomain]struct{})}
	g.visit(id, now, func(gr *grant) {
		s.Entries = append(s.Entries, gr.entry)
		s.Buckets[gr.bucket] ^= gr.sum
		if gr.federates {
			for _, td := range gr.entry.FederatesWith() {
				s.Domains[td] = struct{}{}
			}
		}
	})
	return s
}

// Compare is Snapshot, at the zero time, for one who has most of it: differs is
// shown the sums, and returns which buckets the entries are wanted of; nil means
// none. When none are, the cost does not follow the number of entries: that is
// what makes the return of thousands of agents cheap. differs is called with
// the graph held, so it must not call it.
func (g *Graph) Compare(id spiffeid.ID, differs func(sums *[feedv1.Buckets]uint64) (wanted func(bucket uint8) bool)) Snapshot {
	g.mu.RLock()
	defer g.mu.RUnlock()
	s := Snapshot{StoreID: g.storeID, Revision: g.revision, Domains: make(map[spiffeid.TrustDomain]struct{})}
	families := g.reachable(id)
	for _, f := range families {
		f.addTo(&s)
	}
	wanted := differs(&s.Buckets)
	if wanted == nil {
		return s
	}
	var buckets [feedv1.Buckets]bool
	for i := range buckets {
		buckets[i] = wanted(uint8(i))
	}
	for _, f := range families {
		for _, gr := range f.members {
			if buckets[gr.bucket] {
				s.Entries = append(s.Entries, gr.entry)
			}
		}
	}
	return s
}

// Domains are the trust domains that an entry federates with that the agent may
// have, at the zero time.
func (g *Graph) Domains(id spiffeid.ID) map[spiffeid.TrustDomain]struct{} {
	none := func(*[feedv1.Buckets]uint64) func(uint8) bool { return nil }
	return g.Compare(id, none).Domains
}

// reachable are the families that the agent may have, all of them, whatever the
// time.
func (t *tables) reachable(id spiffeid.ID) []*family {
	a := t.live(id, time.Time{})
	if a == nil {
		return nil
	}
	var todo queue
	todo.add(t.families[a.id.Path()])
	for _, al := range a.aliases {
		todo.add(al.grant.below)
	}
	for f := todo.next(); f != nil; f = todo.next() {
		for gr := range f.branches {
			todo.add(gr.below)
		}
	}
	return todo.list
}

// addTo adds what the family is, but for its entries.
func (f *family) addTo(s *Snapshot) {
	for td := range f.domains {
		s.Domains[td] = struct{}{}
	}
	if f.sums == nil {
		for _, gr := range f.members {
			s.Buckets[gr.bucket] ^= gr.sum
		}
		return
	}
	for i, sum := range f.sums {
		s.Buckets[i] ^= sum
	}
}

// summed is from how many members on a family keeps its sums.
const summed = feedv1.Buckets

// join makes a grant a member.
func (f *family) join(gr *grant) {
	gr.at = int32(len(f.members))
	f.members = append(f.members, gr)
	f.branch(gr)
	f.count(gr, 1)
	switch {
	case f.sums != nil:
		f.sums[gr.bucket] ^= gr.sum
	case len(f.members) >= summed:
		f.sums = new([feedv1.Buckets]uint64)
		for _, m := range f.members {
			f.sums[m.bucket] ^= m.sum
		}
	}
}

// leave undoes join.
func (f *family) leave(gr *grant) {
	last := len(f.members) - 1
	f.members[gr.at] = f.members[last]
	f.members[gr.at].at = gr.at
	f.members[last] = nil
	f.members = f.members[:last]
	delete(f.branches, gr)
	f.count(gr, -1)
	if f.sums != nil {
		f.sums[gr.bucket] ^= gr.sum
	}
}

// branch notes whether there is something below a member.
func (f *family) branch(gr *grant) {
	if gr.below == nil {
		delete(f.branches, gr)
		return
	}
	if f.branches == nil {
		f.branches = make(map[*grant]struct{})
	}
	f.branches[gr] = struct{}{}
}

// count adds by to the trust domains that the member federates with.
func (f *family) count(gr *grant, by int) {
	if !gr.federates {
		return
	}
	if f.domains == nil {
		f.domains = make(map[spiffeid.TrustDomain]int)
	}
	for _, td := range gr.entry.FederatesWith() {
		if f.domains[td] += by; f.domains[td] == 0 {
			delete(f.domains, td)
		}
	}
}
