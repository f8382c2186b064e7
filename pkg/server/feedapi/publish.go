package feedapi

import (
	"slices"

	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// Publish marks, for every stream that the commit may concern, what to look at
// again, and wakes it. It is called for each commit, in order, after the index
// and the graph have applied it; touched is what the graph said. It blocks on
// no stream: its cost is that of the marks.
func (h *Hub) Publish(c *registry.Commit, touched entitle.Touched) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case c.Reset:
		for _, s := range h.streams {
			s.mark((*pending).addAll)
		}
	default:
		h.publishEntries(c, touched)
	}
	h.publishBundles(c)
	h.remember(c)

	h.revision.Store(uint64(c.Revision))
	h.waiters = slices.DeleteFunc(h.waiters, func(w waiter) bool {
		if w.revision > c.Revision {
			return false
		}
		close(w.reached)
		return true
	})
	if h.storeID == "" {
		h.storeID = c.StoreID
		close(h.ready)
	}
}

// publishEntries is called with mu held.
func (h *Hub) publishEntries(c *registry.Commit, touched entitle.Touched) {
	for _, id := range touched.Whole {
		if s := h.streams[id]; s != nil {
			s.mark((*pending).addAll)
		}
	}
	if len(touched.Groups) == 0 || len(h.streams) == 0 {
		return
	}
	keeps := h.keepsFederation(c)
	for _, g := range touched.Groups {
		mark := h.groupMark(g.Entries, keeps)
		for _, id := range g.Agents {
			if s := h.streams[id]; s != nil {
				s.mark(mark)
			}
		}
	}
}

// groupMark is what a group of entries changes in the pending of each of its
// agents. Many entries are marked by their buckets, found out once.
func (h *Hub) groupMark(entries []string, keepsFederation bool) func(*pending) {
	shrunk := false
	for _, id := range entries {
		shrunk = shrunk || !keepsFederation && h.federating[id] != nil
	}
	var buckets bucketSet
	if len(entries) > maxPending {
		for _, id := range entries {
			buckets.add(feedv1.Bucket(id))
		}
		entries = nil
	}
	return func(p *pending) {
		p.addBuckets(buckets)
		for _, id := range entries {
			p.addEntry(id)
		}
		p.shrunk = p.shrunk || shrunk
	}
}

// keepsFederation says whether the commit only changes entries that federate, in
// place, to federate with the same or more. It spares each agent a walk over all
// its entries in the most usual case.
func (h *Hub) keepsFederation(c *registry.Commit) bool {
	for _, change := range c.Entries {
		before, now := h.federating[change.ID], change.Now
		if before == nil || now == nil || now.IsAlias() || !now.SameEdge(before) {
			return false
		}
		with := now.FederatesWith()
		for _, td := range before.FederatesWith() {
			if !slices.Contains(with, td) {
				return false
			}
		}
	}
	return true
}

// publishBundles is called with mu held.
func (h *Hub) publishBundles(c *registry.Commit) {
	for _, change := range c.Bundles {
		for _, s := range h.streams {
			if s.needing(change.TrustDomain) {
				s.mark(func(p *pending) { p.addBundle(change.TrustDomain) })
			}
		}
	}
}

// remember keeps the entries that federate.
func (h *Hub) remember(c *registry.Commit) {
	if c.Reset {
		h.federating = make(map[string]*registry.Packed)
	}
	for _, change := range c.Entries {
		if change.Now == nil || !change.Now.Federates() {
			delete(h.federating, change.ID)
			continue
		}
		h.federating[change.ID] = change.Now
	}
}
