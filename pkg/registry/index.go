package registry

import (
	"context"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/tidwall/btree"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
)

// MaxPage is the most that one call of a List method returns.
const MaxPage = 1000

// Index is the tables in memory, as of one revision. It is filled by Apply, from
// [Registry.Follow]; every other method may be called concurrently with it and
// sees a commit either whole or not at all. An entry that has expired is treated
// as not there, even while the store still holds it.
type Index struct {
	mu sync.RWMutex
	// guarded by mu
	storeID  string
	revision store.Revision
	loaded   bool
	entries  *btree.BTreeG[*Packed]     // by ID
	order    *orders                    // each made when a filter asks for it
	pending  *pending                   // while orders are being made
	agents   map[string]*Agent          // by SPIFFE ID
	agentIDs *btree.BTreeG[*Agent]      // by SPIFFE ID
	bundles  btree.Map[string, *Bundle] // by trust domain name
	related  btree.Map[string, *FederationRelationship]
	view     *view // copy for long reads, nil after each change
	waiters  map[*waiter]struct{}

	// ordering is held by who makes orders.
	ordering sync.Mutex
}

// view is an immutable copy of the ordered tables.
type view struct {
	entries *btree.BTreeG[*Packed]
	order   *orders
	agents  *btree.BTreeG[*Agent]
}

type waiter struct {
	revision store.Revision
	reached  chan struct{}
}

// NewIndex returns an index that holds nothing and has not reached any revision.
func NewIndex() *Index {
	ix := &Index{waiters: make(map[*waiter]struct{})}
	ix.clear()
	return ix
}

func (ix *Index) clear() {
	ix.entries = btree.NewBTreeGOptions(lessEntry, btree.Options{NoLocks: true})
	ix.agentIDs = btree.NewBTreeGOptions(lessAgent, btree.Options{NoLocks: true})
	ix.agents = make(map[string]*Agent)
	ix.bundles.Clear()
	ix.related.Clear()
	ix.order, ix.pending = newOrders(), nil
}

func lessEntry(a, b *Packed) bool { return a.ID() < b.ID() }

func lessAgent(a, b *Agent) bool { return a.ID.String() < b.ID.String() }

// Apply brings the index to the commit's revision. It is called by one
// goroutine, in the order of Follow.
func (ix *Index) Apply(c *Commit) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.view = nil
	if c.Reset {
		ix.clear()
	}
	for _, ch := range c.Entries {
		ix.applyEntry(ch, c.Reset)
	}
	for _, ch := range c.Agents {
		ix.applyAgent(ch)
	}
	for _, ch := range c.Bundles {
		replaceIn(&ix.bundles, ch.TrustDomain, ch.Now)
	}
	for _, ch := range c.Relationships {
		replaceIn(&ix.related, ch.TrustDomain, ch.Now)
	}
	ix.storeID, ix.revision, ix.loaded = c.StoreID, c.Revision, true
	for w := range ix.waiters {
		if w.revision <= c.Revision {
			close(w.reached)
			delete(ix.waiters, w)
		}
	}
}

func (ix *Index) applyEntry(ch EntryChange, inOrder bool) {
	var old *Packed
	switch {
	case ch.Now == nil:
		old, _ = ix.entries.Delete(packID(ch.ID))
	case inOrder:
		old, _ = ix.entries.Load(ch.Now)
	default:
		old, _ = ix.entries.Set(ch.Now)
	}
	ix.order.replace(old, ch.Now)
	if ix.pending != nil {
		ix.pending.changes = append(ix.pending.changes, change{old, ch.Now})
	}
}

func (ix *Index) applyAgent(ch AgentChange) {
	id := ch.ID.String()
	if ch.Now == nil {
		delete(ix.agents, id)
		ix.agentIDs.Delete(&Agent{ID: ch.ID})
		return
	}
	ix.agents[id] = ch.Now
	ix.agentIDs.Set(ch.Now)
}

// Position is the store and the revision that the index stands at. loaded is
// false before the first commit.
func (ix *Index) Position() (storeID string, rev store.Revision, loaded bool) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.storeID, ix.revision, ix.loaded
}

// Revision is the one that the index stands at.
func (ix *Index) Revision() store.Revision {
	_, rev, _ := ix.Position()
	return rev
}

// WaitFor returns nil once the index has reached the revision, and at least its
// first commit, or ctx.Err() when ctx ends before.
func (ix *Index) WaitFor(ctx context.Context, rev store.Revision) error {
	ix.mu.Lock()
	if ix.loaded && ix.revision >= rev {
		ix.mu.Unlock()
		return nil
	}
	w := &waiter{revision: rev, reached: make(chan struct{})}
	ix.waiters[w] = struct{}{}
	ix.mu.Unlock()
	select {
	case <-w.reached:
		return nil
	case <-ctx.Done():
		ix.mu.Lock()
		defer ix.mu.Unlock()
		delete(ix.waiters, w)
		return ctx.Err()
	}
}

// Entry returns the entry with the ID, if there is one at now.
func (ix *Index) Entry(id string, now time.Time) (*Entry, bool) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	p, ok := ix.entries.Get(packID(id))
	if !ok || p.Expired(now) {
		return nil, false
	}
	return p.Entry(), true
}

// Agent returns the agent with the ID, banned ones included.
func (ix *Index) Agent(id spiffeid.ID) (*Agent, bool) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	a, ok := ix.agents[id.String()]
	return a, ok
}

// snapshot returns a copy of the ordered tables. It is shared by all readers
// until the next commit; what it costs is that the commit copies the nodes it
// changes.
func (ix *Index) snapshot() *view {
	ix.mu.RLock()
	v := ix.view
	ix.mu.RUnlock()
	if v != nil {
		return v
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.view == nil {
		ix.view = &view{entries: ix.entries.Copy(), order: ix.order.copy(), agents: ix.agentIDs.Copy()}
	}
	return ix.view
}

// ListEntries returns up to limit entries that the filter selects, in order of
// their IDs, from after the given ID on ("": the first). next is what to go on
// after, or "" when there are no more. A limit that is not between 1 and MaxPage
// means MaxPage: memory follows what is found, never what was asked for.
func (ix *Index) ListEntries(f EntryFilter, after string, limit int, now time.Time) (list []*Entry, next string) {
	packed, next := ix.ListPacked(f, after, limit, now)
	for _, p := range packed {
		list = append(list, p.Entry())
	}
	return list, next
}

// ListPacked is ListEntries for those who send entries on as they are.
func (ix *Index) ListPacked(f EntryFilter, after string, limit int, now time.Time) (list []*Packed, next string) {
	limit = clampPage(limit)
	ix.scan(f, after, now, func(p *Packed) bool {
		list = append(list, p)
		return len(list) <= limit
	})
	return page(list, limit, (*Packed).ID)
}

// CountEntries counts what the filter selects.
func (ix *Index) CountEntries(f EntryFilter, now time.Time) int {
	n := 0
	ix.scan(f, "", now, func(*Packed) bool {
		n++
		return true
	})
	return n
}

// scan visits what the filter selects, in order of ID, until visit returns
// false.
func (ix *Index) scan(f EntryFilter, after string, now time.Time, visit func(*Packed) bool) {
	f = f.normalized()
	ix.makeOrder(&f)
	next := ix.snapshot().candidates(&f, after)
	m := matcher{filter: &f}
	for p := next(); p != nil; p = next() {
		if p.ID() <= after || p.Expired(now) || !m.matches(p) {
			continue
		}
		if !visit(p) {
			return
		}
	}
}

func clampPage(limit int) int {
	if limit <= 0 || limit > MaxPage {
		return MaxPage
	}
	return limit
}

// ListAgents returns up to limit agents that the filter selects, in order of
// their SPIFFE IDs, from after the given one on. It pages like ListEntries.
func (ix *Index) ListAgents(f AgentFilter, after string, limit int) (list []*Agent, next string) {
	limit = clampPage(limit)
	ix.scanAgents(f, after, func(a *Agent) bool {
		list = append(list, a)
		return len(list) <= limit
	})
	return page(list, limit, func(a *Agent) string { return a.ID.String() })
}

// CountAgents counts what the filter selects.
func (ix *Index) CountAgents(f AgentFilter) int {
	n := 0
	ix.scanAgents(f, "", func(*Agent) bool {
		n++
		return true
	})
	return n
}

// scanAgents looks at every agent after the given one: pages go on where the
// last one ended, so a whole list costs one pass.
func (ix *Index) scanAgents(f AgentFilter, after string, visit func(*Agent) bool) {
	f.Selectors = attest.NewSelectors(f.Selectors...)
	agents := ix.snapshot().agents
	step := func(a *Agent) bool {
		if a.ID.String() <= after || !f.matches(a) {
			return true
		}
		return visit(a)
	}
	id, err := spiffeid.FromString(after)
	if err != nil {
		agents.Scan(step)
		return
	}
	agents.Ascend(&Agent{ID: id}, step)
}
