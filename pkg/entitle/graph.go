package entitle

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// Graph is the live index. All methods may be called concurrently; Apply by one
// goroutine, in the order of registry.Follow. A reader sees a commit either
// whole or not at all.
type Graph struct {
	td spiffeid.TrustDomain

	mu       sync.RWMutex
	storeID  string
	revision store.Revision
	*tables  // guarded by mu
}

// tables are the graph: its nodes are SPIFFE IDs, its edges entries, from their
// parent to their own ID. Agents hang on it by their own ID and by the aliases
// they match.
type tables struct {
	td     spiffeid.TrustDomain
	grants map[string]*grant // by entry ID
	// holders, families and agents are of this trust domain alone: the path
	// of the SPIFFE ID names them.
	holders  map[string]*grant  // by SPIFFE ID: first of a list
	families map[string]*family // by parent's SPIFFE ID
	aliases  map[*grant]*alias
	// aliasesBy lists each alias under one of its selectors, the rarest when
	// it came.
	aliasesBy map[attest.Selector][]*alias
	agents    map[string]*agent // attested and not banned, by SPIFFE ID
	agentsBy  map[attest.Selector][]*agent
}

// grant is one entry in the graph. There are as many as entries: every word
// counts.
type grant struct {
	entry *registry.Packed
	sum   uint64 // see feedv1.Sum
	// next and prev are entries with the same SPIFFE ID.
	next, prev *grant
	// below are the entries whose parent this entry's SPIFFE ID is, or nil.
	below  *family
	at     int32 // position in the parent's family
	bucket uint8
	alias  bool
	// expires and federates save readers a look at the entry.
	expires   bool
	federates bool
}

// family is the entries with one parent, aliases excepted. It is there as long
// as it has a member. What it keeps beside them answers for all of them at once.
type family struct {
	parent  string
	members []*grant
	// sums are over the members, see feedv1; nil while there are few.
	sums *[feedv1.Buckets]uint64
	// branches are the members with entries below them.
	branches map[*grant]struct{}
	// domains counts the members that federate with each trust domain.
	domains map[spiffeid.TrustDomain]int
}

// alias is what is known of a grant that is a node alias.
type alias struct {
	grant     *grant
	selectors attest.Selectors
	key       attest.Selector // where aliasesBy has it
	agents    map[*agent]struct{}
	// ids lists agents; nil after a change. It is shared by every Touched and
	// never changed.
	ids []spiffeid.ID
}

type agent struct {
	id      spiffeid.ID
	now     *registry.Agent
	aliases []*alias // that it matches, expired ones included
}

// New returns a graph that holds nothing.
func New(td spiffeid.TrustDomain) *Graph {
	return &Graph{td: td, tables: newTables(td, 0, 0)}
}

func newTables(td spiffeid.TrustDomain, entries, agents int) *tables {
	return &tables{
		td:        td,
		grants:    make(map[string]*grant, entries),
		holders:   make(map[string]*grant, entries),
		families:  make(map[string]*family),
		aliases:   make(map[*grant]*alias),
		aliasesBy: make(map[attest.Selector][]*alias),
		agents:    make(map[string]*agent, agents),
		agentsBy:  make(map[attest.Selector][]*agent),
	}
}

// Apply brings the graph to the commit's revision and says what that touched.
// Its cost follows the change: the entry, what hangs below it if an edge came or
// went, and the lists of agents that an agent's own change made stale.
func (g *Graph) Apply(c *registry.Commit) Touched {
	if c.Reset {
		t := build(g.td, c)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.tables, g.storeID, g.revision = t, c.StoreID, c.Revision
		return Touched{StoreID: c.StoreID, Revision: c.Revision, Reset: true}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.storeID, g.revision = c.StoreID, c.Revision
	rec := newRecorder(g.tables)
	for _, ch := range c.Entries {
		g.applyEntry(rec, ch)
	}
	for _, ch := range c.Agents {
		g.applyAgent(rec, ch)
	}
	out := rec.touched()
	out.StoreID, out.Revision = c.StoreID, c.Revision
	return out
}

// build makes tables of a commit that is the whole content.
func build(td spiffeid.TrustDomain, c *registry.Commit) *tables {
	t := newTables(td, len(c.Entries), len(c.Agents))
	grants := slices.DeleteFunc(t.grantsOf(c.Entries), func(gr *grant) bool { return gr == nil })
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, gr := range grants {
			t.grants[gr.entry.ID()] = gr
		}
	})
	for _, gr := range grants { // Looks at all tables but grants.
		t.hang(gr)
	}
	wg.Wait()
	for _, ch := range c.Agents {
		t.setAgent(ch.ID, ch.Now)
	}
	return t
}

// grantsOf makes grants, nil for what is not relevant, on all processors: their
// sums are the dearer part of a start.
func (t *tables) grantsOf(entries []registry.EntryChange) []*grant {
	grants := make([]*grant, len(entries))
	var wg sync.WaitGroup
	for chunk := range slices.Chunk(grants, len(grants)/runtime.GOMAXPROCS(0)+1) {
		from := entries
		entries = entries[len(chunk):]
		wg.Go(func() {
			for i := range chunk {
				if e := from[i].Now; t.relevant(e) {
					chunk[i] = newGrant(e)
				}
			}
		})
	}
	wg.Wait()
	return grants
}

// Authorized returns the entries that the agent may have at now, in no order;
// none for one that is not attested, banned or expired. The entries are shared
// and must not be changed.
func (g *Graph) Authorized(id spiffeid.ID, now time.Time) []*registry.Packed {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var out []*registry.Packed
	g.visit(id, now, func(gr *grant) { out = append(out, gr.entry) })
	return out
}

// Lookup returns the entry if the agent may have it at now. It walks up from the
// entry and expands nothing: its cost follows the depth of the entry.
func (g *Graph) Lookup(id spiffeid.ID, entryID string, now time.Time) (*registry.Packed, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	a := g.live(id, now)
	gr := g.grants[entryID]
	if a == nil || gr == nil || gr.alias || gr.expired(now) || !g.reaches(a, gr, now) {
		return nil, false
	}
	return gr.entry, true
}

// Position is the store and revision that the graph stands at.
func (g *Graph) Position() (storeID string, rev store.Revision) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.storeID, g.revision
}

func (gr *grant) expired(now time.Time) bool { return gr.expires && gr.entry.Expired(now) }

// of returns the agent with the SPIFFE ID, if it is attested and not banned.
func (t *tables) of(id spiffeid.ID) *agent {
	if !id.MemberOf(t.td) {
		return nil
	}
	return t.agents[id.Path()]
}

// live returns the agent if it may have anything.
func (t *tables) live(id spiffeid.ID, now time.Time) *agent {
	a := t.of(id)
	if a == nil || !now.Before(a.now.ExpiresAt()) {
		return nil
	}
	return a
}

// visit walks down from the agent, to each entry once: an entry has one parent,
// so it is enough to enter no family twice.
func (t *tables) visit(id spiffeid.ID, now time.Time, visit func(*grant)) {
	a := t.live(id, now)
	if a == nil {
		return
	}
	var todo queue
	todo.add(t.families[a.id.Path()])
	for _, al := range a.aliases {
		if !al.grant.expired(now) {
			todo.add(al.grant.below)
		}
	}
	for f := todo.next(); f != nil; f = todo.next() {
		for _, gr := range f.members {
			if gr.expired(now) {
				continue
			}
			visit(gr)
			todo.add(gr.below)
		}
	}
}

// queue hands out each family once, in the order they were added.
type queue struct {
	list []*family
	at   int
	seen map[*family]struct{} // made when the list is long
}

const shortQueue = 8

func (q *queue) add(f *family) {
	if f == nil || q.has(f) {
		return
	}
	q.list = append(q.list, f)
	if q.seen != nil {
		q.seen[f] = struct{}{}
	}
}

func (q *queue) has(f *family) bool {
	if len(q.list) <= shortQueue {
		for _, x := range q.list {
			if x == f {
				return true
			}
		}
		return false
	}
	if q.seen == nil {
		q.seen = make(map[*family]struct{}, 4*shortQueue)
		for _, x := range q.list {
			q.seen[x] = struct{}{}
		}
	}
	_, ok := q.seen[f]
	return ok
}

func (q *queue) next() *family {
	if q.at == len(q.list) {
		return nil
	}
	q.at++
	return q.list[q.at-1]
}

// reaches walks up from the entry's parent until it meets the agent or an alias
// that it matches.
func (t *tables) reaches(a *agent, gr *grant, now time.Time) bool {
	found := false
	t.climb(gr.parent(), func(path string) bool {
		found = found || path == a.id.Path()
		return found
	}, func(h *grant) (up bool) {
		if h.expired(now) || found {
			return false
		}
		if h.alias {
			found = a.matches(h)
		}
		return !h.alias
	})
	return found
}

// matches says whether gr is one of the aliases that the agent matches.
func (a *agent) matches(gr *grant) bool {
	for _, al := range a.aliases {
		if al.grant == gr {
			return true
		}
	}
	return false
}

// climb visits the SPIFFE ID with this path and every one above it, each once:
// node is told the path and returns whether to stop; edge is told each entry that holds the ID,
// and returns whether to go on to its parent.
func (t *tables) climb(path string, node func(path string) (stop bool), edge func(*grant) (up bool)) {
	seen := make([]string, 0, 8)
	var many map[string]struct{}
	add := func(path string) {
		if many != nil {
			if _, ok := many[path]; ok {
				return
			}
			many[path] = struct{}{}
		} else {
			for _, s := range seen {
				if s == path {
					return
				}
			}
		}
		seen = append(seen, path)
		if many == nil && len(seen) > shortQueue {
			many = make(map[string]struct{}, 4*shortQueue)
			for _, s := range seen {
				many[s] = struct{}{}
			}
		}
	}
	add(path)
	for i := 0; i < len(seen); i++ {
		if node(seen[i]) {
			return
		}
		for h := t.holders[seen[i]]; h != nil; h = h.next {
			if edge(h) {
				add(h.parent())
			}
		}
	}
}
