package entitle

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// relevant says whether the entry belongs into the graph.
func (t *tables) relevant(e *registry.Packed) bool {
	if e == nil {
		return false
	}
	of, _ := e.SPIFFEID()
	under, _ := e.ParentID()
	return of == t.td.Name() && under == of
}

func newGrant(e *registry.Packed) *grant {
	gr := &grant{alias: e.IsAlias(), bucket: feedv1.Bucket(e.ID())}
	gr.set(e)
	return gr
}

func (gr *grant) set(e *registry.Packed) {
	gr.entry, gr.expires, gr.federates = e, e.Expires(), e.Federates()
	gr.sum = feedv1.Sum(e.ID(), uint64(e.ModRevision()))
}

// path is that of the SPIFFE ID that the grant gives, and parent that of the one
// it is given to.
func (gr *grant) path() string {
	_, path := gr.entry.SPIFFEID()
	return path
}

func (gr *grant) parent() string {
	_, path := gr.entry.ParentID()
	return path
}

// The keys of grants and holders are parts of an entry that is in the graph, and
// never of an older version of it, which they would keep in memory. Setting a
// key that is there already replaces its text, too.

// set gives the grant a version of its entry with the same edge.
func (t *tables) set(gr *grant, e *registry.Packed) {
	if gr.alias {
		gr.set(e)
	} else {
		f := t.families[gr.parent()]
		f.leave(gr)
		gr.set(e)
		f.join(gr)
	}
	t.grants[e.ID()] = gr
	if gr.prev == nil {
		t.holders[gr.path()] = gr
	}
}

// insert puts a grant into every table. No grant of its entry is in them.
func (t *tables) insert(gr *grant) {
	t.grants[gr.entry.ID()] = gr
	t.hang(gr)
}

// hang is insert without the table of grants.
func (t *tables) hang(gr *grant) {
	path := gr.path()
	if first := t.holders[path]; first != nil {
		gr.next, first.prev = first, gr
	}
	t.holders[path] = gr
	gr.below = t.families[path]
	if gr.alias {
		t.insertAlias(gr)
		return
	}
	f := t.families[gr.parent()]
	if f == nil {
		f = &family{parent: strings.Clone(gr.parent())}
		t.families[f.parent] = f
		t.setBelow(f.parent, f)
	}
	f.join(gr)
}

// remove takes a grant out of every table.
func (t *tables) remove(gr *grant) {
	delete(t.grants, gr.entry.ID())
	switch {
	case gr.prev != nil:
		gr.prev.next = gr.next
	case gr.next != nil:
		t.holders[gr.next.path()] = gr.next
	default:
		delete(t.holders, gr.path())
	}
	if gr.next != nil {
		gr.next.prev = gr.prev
	}
	gr.next, gr.prev, gr.below = nil, nil, nil
	if gr.alias {
		t.removeAlias(gr)
		return
	}
	f := t.families[gr.parent()]
	if f.leave(gr); len(f.members) == 0 {
		delete(t.families, f.parent)
		t.setBelow(f.parent, nil)
	}
}

// setBelow tells those who hold the SPIFFE ID what is below them.
func (t *tables) setBelow(path string, f *family) {
	for h := t.holders[path]; h != nil; h = h.next {
		h.below = f
		if !h.alias {
			t.families[h.parent()].branch(h)
		}
	}
}

func (t *tables) insertAlias(gr *grant) {
	sel := gr.entry.Selectors()
	al := &alias{grant: gr, selectors: sel, agents: make(map[*agent]struct{})}
	t.aliases[gr] = al
	if len(sel) == 0 {
		return // Matches nobody rather than everybody.
	}
	al.key = sel[0]
	rarest := sel[0]
	for _, s := range sel[1:] {
		if len(t.aliasesBy[s]) < len(t.aliasesBy[al.key]) {
			al.key = s
		}
		if len(t.agentsBy[s]) < len(t.agentsBy[rarest]) {
			rarest = s
		}
	}
	t.aliasesBy[al.key] = append(t.aliasesBy[al.key], al)
	for _, a := range t.agentsBy[rarest] {
		if a.now.Selectors.Contains(sel) {
			al.join(a)
		}
	}
}

func (t *tables) removeAlias(gr *grant) {
	al := t.aliases[gr]
	delete(t.aliases, gr)
	drop(t.aliasesBy, al.key, al)
	for a := range al.agents {
		i := slices.Index(a.aliases, al)
		a.aliases = slices.Delete(a.aliases, i, i+1)
	}
}

func (al *alias) join(a *agent) {
	al.agents[a] = struct{}{}
	al.ids = nil
	a.aliases = append(a.aliases, al)
}

// agentIDs lists the agents that match the alias.
func (al *alias) agentIDs() []spiffeid.ID {
	if al.ids == nil {
		al.ids = make([]spiffeid.ID, 0, len(al.agents))
		for a := range al.agents {
			al.ids = append(al.ids, a.id)
		}
	}
	return al.ids
}

// drop removes x from the list under key, whose order does not matter.
func drop[T comparable](lists map[attest.Selector][]T, key attest.Selector, x T) {
	list := lists[key]
	i := slices.Index(list, x)
	if i < 0 {
		return
	}
	last := len(list) - 1
	list[i] = list[last]
	clear(list[last:])
	if list = list[:last]; last == 0 {
		delete(lists, key)
		return
	}
	lists[key] = list
}

// setAgent brings one agent up to date. It says whether what the agent may have
// can have changed, other than by the expiry of its SVID.
func (t *tables) setAgent(id spiffeid.ID, now *registry.Agent) bool {
	if now != nil && (now.Banned || !id.MemberOf(t.td)) {
		now = nil
	}
	old := t.of(id)
	if old != nil && now != nil && old.now.Selectors.Equal(now.Selectors) {
		old.now = now
		return false
	}
	if old != nil {
		t.removeAgent(old)
	}
	if now != nil {
		t.insertAgent(&agent{id: id, now: now})
	}
	return old != nil || now != nil
}

func (t *tables) insertAgent(a *agent) {
	t.agents[a.id.Path()] = a
	for _, s := range a.now.Selectors {
		t.agentsBy[s] = append(t.agentsBy[s], a)
		for _, al := range t.aliasesBy[s] {
			if a.now.Selectors.Contains(al.selectors) {
				al.join(a)
			}
		}
	}
}

func (t *tables) removeAgent(a *agent) {
	delete(t.agents, a.id.Path())
	for _, s := range a.now.Selectors {
		drop(t.agentsBy, s, a)
	}
	for _, al := range a.aliases {
		delete(al.agents, a)
		al.ids = nil
	}
}
