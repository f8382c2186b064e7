package entitle

import (
	"iter"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
)

// Touched says for which agents, and which entries, an answer of the graph may
// have changed by one commit; never too little, sometimes more. It does not
// speak of bundles, which the commit itself names, nor of an agent whose SVID's
// expiry moved.
//
// Its slices are shared and must not be changed.
type Touched struct {
	StoreID  string
	Revision store.Revision
	// Reset: everything may be different for everybody.
	Reset bool
	// Whole are agents that came, went, were banned, or whose selectors
	// changed: all that they may have may be different.
	Whole []spiffeid.ID
	// Groups are agents and the entries to look up again for each of them.
	// One agent, or one entry, can be in several.
	Groups []Group
}

// Group is agents that share what touches them: behind one alias there can be
// thousands.
type Group struct {
	Agents  []spiffeid.ID
	Entries []string
}

// All yields each agent of Groups with the entry IDs to look up again. An agent
// may come more than once.
func (t Touched) All() iter.Seq2[spiffeid.ID, []string] {
	return func(yield func(spiffeid.ID, []string) bool) {
		for _, g := range t.Groups {
			for _, id := range g.Agents {
				if !yield(id, g.Entries) {
					return
				}
			}
		}
	}
}

// recorder collects what is touched while changes are made one after another.
type recorder struct {
	*tables
	out   Touched
	open  map[string]*reach // by parent; good while no edge above it changes
	order []*reach
}

// reach is everybody who reaches one parent, and the entries to tell them of.
type reach struct {
	agents  [][]spiffeid.ID
	entries []string
}

func newRecorder(t *tables) *recorder {
	return &recorder{tables: t, open: make(map[string]*reach)}
}

func (r *recorder) touched() Touched {
	for _, x := range r.order {
		if len(x.entries) == 0 {
			continue
		}
		for _, agents := range x.agents {
			r.out.Groups = append(r.out.Groups, Group{Agents: agents, Entries: x.entries})
		}
	}
	return r.out
}

// note tells everybody who reaches the grant of its entry and, if deep, of all
// below it.
func (r *recorder) note(gr *grant, deep bool) {
	x := r.reachOf(gr)
	if len(x.agents) == 0 {
		return
	}
	if !gr.alias {
		x.entries = append(x.entries, gr.entry.ID())
	}
	if deep {
		x.entries = append(x.entries, below(gr)...)
	}
}

func (r *recorder) reachOf(gr *grant) *reach {
	if gr.alias {
		x := &reach{}
		x.add(r.aliases[gr].agentIDs())
		r.order = append(r.order, x)
		return x
	}
	parent := gr.parent()
	x := r.open[parent]
	if x == nil {
		x = r.above(parent)
		r.open[parent] = x
		r.order = append(r.order, x)
	}
	return x
}

func (x *reach) add(agents []spiffeid.ID) {
	if len(agents) > 0 {
		x.agents = append(x.agents, agents)
	}
}

// above finds everybody who reaches a SPIFFE ID, expired edges included.
func (r *recorder) above(path string) *reach {
	x := &reach{}
	var direct []spiffeid.ID
	r.climb(path, func(path string) bool {
		if a := r.agents[path]; a != nil {
			direct = append(direct, a.id)
		}
		return false
	}, func(h *grant) bool {
		if h.alias {
			x.add(r.aliases[h].agentIDs())
		}
		return !h.alias
	})
	x.add(direct)
	return x
}

// below lists the entries below a grant, expired edges included.
func below(gr *grant) []string {
	var out []string
	var todo queue
	todo.add(gr.below)
	for f := todo.next(); f != nil; f = todo.next() {
		for _, m := range f.members {
			out = append(out, m.entry.ID())
			todo.add(m.below)
		}
	}
	return out
}

// applyEntry makes one change and records what it touches: before an edge goes,
// and after one came.
func (t *tables) applyEntry(rec *recorder, ch registry.EntryChange) {
	old, now := t.grants[ch.ID], ch.Now
	if !t.relevant(now) {
		now = nil
	}
	switch {
	case old == nil && now == nil:
	case old == nil:
		t.add(rec, now)
	case now == nil:
		t.cut(rec, old)
	case sameEdge(old.entry, now):
		deep := !old.entry.SameExpiry(now)
		t.set(old, now)
		if deep || !old.alias {
			rec.note(old, deep)
		}
	default:
		t.cut(rec, old)
		t.add(rec, now)
	}
}

// sameEdge says whether two versions of an entry hang in the same place.
func sameEdge(a, b *registry.Packed) bool {
	return a.SameEdge(b) && (!a.IsAlias() || a.Selectors().Equal(b.Selectors()))
}

func (t *tables) add(rec *recorder, e *registry.Packed) {
	gr := newGrant(e)
	t.insert(gr)
	rec.moved(gr)
	rec.note(gr, true)
}

func (t *tables) cut(rec *recorder, gr *grant) {
	rec.note(gr, true)
	t.remove(gr)
	rec.moved(gr)
}

// moved forgets lists of agents that go through the grant's edge: those of its
// SPIFFE ID, if somebody asked for them or can have passed by.
func (r *recorder) moved(gr *grant) {
	path := gr.path()
	if _, asked := r.open[path]; asked || r.families[path] != nil {
		clear(r.open)
	}
}

// applyAgent comes after every applyEntry of a commit: what was collected for
// the agents before need not know of this one, all of whose entries are touched.
func (t *tables) applyAgent(rec *recorder, ch registry.AgentChange) {
	if t.setAgent(ch.ID, ch.Now) {
		rec.out.Whole = append(rec.out.Whole, ch.ID)
	}
}
