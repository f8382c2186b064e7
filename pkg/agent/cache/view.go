package cache

import (
	"container/list"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/attest"
)

// maxIdleViews bounds the selector sets without subscribers that are kept at
// hand, for workloads that connect again and again.
const maxIdleViews = 1024

// view is the workloads that have the same selectors. Guarded by Cache.mu, but
// for what says otherwise.
type view struct {
	key       string
	selectors attest.Selectors
	grantee   *grantee
	subs      int
	demand    int           // subscriptions that want X509-SVIDs
	idle      *list.Element // when subs is 0
	// now is what subscribers see; read without mu.
	now atomic.Pointer[sight]
}

// sight is a grant, and how to learn that there is another one.
type sight struct {
	grant   *Grant
	changed chan struct{}
}

// selectorsKey tells sets of selectors apart.
func selectorsKey(selectors attest.Selectors) string {
	n := 0
	for _, s := range selectors {
		n += len(s.Type) + len(s.Value) + 2*binary.MaxVarintLen16
	}
	b := make([]byte, 0, n)
	for _, s := range selectors {
		b = binary.AppendUvarint(b, uint64(len(s.Type)))
		b = append(b, s.Type...)
		b = binary.AppendUvarint(b, uint64(len(s.Value)))
		b = append(b, s.Value...)
	}
	return string(b)
}

func granteeKey(records []*record) string {
	n := 0
	for _, r := range records {
		n += len(r.entry.id) + binary.MaxVarintLen16
	}
	b := make([]byte, 0, n)
	for _, r := range records {
		b = binary.AppendUvarint(b, uint64(len(r.entry.id)))
		b = append(b, r.entry.id...)
	}
	return string(b)
}

// acquire returns the view of the selectors, with one more subscriber.
func (c *Cache) acquire(selectors attest.Selectors) *view {
	key := selectorsKey(selectors)
	v := c.views[key]
	if v == nil {
		v = &view{key: key, selectors: selectors}
		c.views[key] = v
		for _, s := range selectors {
			if c.viewsBy[s] == nil {
				c.viewsBy[s] = map[*view]struct{}{}
			}
			c.viewsBy[s][v] = struct{}{}
		}
		c.regroup(v)
		c.settled(time.Now())
	}
	if v.idle != nil {
		c.idleViews.Remove(v.idle)
		v.idle = nil
	}
	v.subs++
	return v
}

// relinquish takes one subscriber away.
func (c *Cache) relinquish(v *view) {
	if v.subs--; v.subs > 0 {
		return
	}
	v.idle = c.idleViews.PushFront(v)
	if c.idleViews.Len() > maxIdleViews {
		c.dropView(c.idleViews.Back().Value.(*view))
	}
}

func (c *Cache) dropView(v *view) {
	c.idleViews.Remove(v.idle)
	delete(c.views, v.key)
	delete(c.dirtyViews, v)
	for _, s := range v.selectors {
		delete(c.viewsBy[s], v)
		if len(c.viewsBy[s]) == 0 {
			delete(c.viewsBy, s)
		}
	}
	c.leave(v)
}

// touchViews marks the views that match the record.
func (c *Cache) touchViews(r *record) {
	var fewest map[*view]struct{}
	for i, s := range r.entry.selectors {
		if views := c.viewsBy[s]; i == 0 || len(views) < len(fewest) {
			fewest = views
		}
	}
	for v := range fewest {
		if v.selectors.Contains(r.entry.selectors) {
			c.dirtyViews[v] = struct{}{}
		}
	}
}

// regroup finds the view's entries again and puts it with those that match the
// same ones.
func (c *Cache) regroup(v *view) {
	records := c.index.match(v.selectors)
	key := granteeKey(records)
	s := c.grantees[key]
	if s == nil {
		s = &grantee{key: key, records: records, views: map[*view]struct{}{}}
		c.grantees[key] = s
		for _, r := range records {
			r.grantees[s] = struct{}{}
		}
	}
	old := v.grantee
	if old == s {
		return
	}
	s.views[v] = struct{}{}
	v.grantee = s
	if v.demand > 0 {
		c.demand(s)
	}
	if old != nil {
		c.leaveGrantee(old, v)
	}
	if _, dirty := c.dirtySets[s]; s.grant != nil && !dirty {
		v.show(s.grant)
		return
	}
	c.dirtySets[s] = struct{}{}
}

func (c *Cache) leave(v *view) {
	c.leaveGrantee(v.grantee, v)
	v.grantee = nil
}

func (c *Cache) leaveGrantee(s *grantee, v *view) {
	if v.demand > 0 {
		c.undemand(s)
	}
	delete(s.views, v)
	if len(s.views) > 0 {
		return
	}
	delete(c.grantees, s.key)
	delete(c.dirtySets, s)
	for _, r := range s.records {
		delete(r.grantees, s)
	}
}

// demand is called when the first of the grantee's views wants X509-SVIDs.
func (c *Cache) demand(s *grantee) {
	if s.demand++; s.demand > 1 {
		return
	}
	for _, r := range s.records {
		if r.demand++; r.demand == 1 && r.live {
			c.use(r)
		}
	}
}

func (c *Cache) undemand(s *grantee) {
	if s.demand--; s.demand > 0 {
		return
	}
	for _, r := range s.records {
		if r.demand--; r.demand == 0 {
			c.unuse(r)
		}
	}
}

// touch marks everyone who sees the record.
func (c *Cache) touch(r *record) {
	for s := range r.grantees {
		c.dirtySets[s] = struct{}{}
	}
}

// settled ends every change of the cache: views and grants that were marked are
// made anew, subscribers told, the warm set filled.
func (c *Cache) settled(now time.Time) {
	for v := range c.dirtyViews {
		delete(c.dirtyViews, v)
		c.regroup(v)
	}
	c.trim()
	c.refill(now)
	for s := range c.dirtySets {
		delete(c.dirtySets, s)
		s.grant = c.build(s)
		for v := range s.views {
			v.show(s.grant)
		}
	}
}

// show puts a grant before the subscribers. They are woken when they would see
// a difference, and when nothing of it is under way any more.
func (v *view) show(g *Grant) {
	old := v.now.Load()
	if old == nil {
		v.now.Store(&sight{grant: g, changed: make(chan struct{})})
		return
	}
	next := &sight{grant: g, changed: old.changed}
	wake := !old.grant.same(g) || !old.grant.settled() && g.settled()
	if wake {
		next.changed = make(chan struct{})
	}
	v.now.Store(next)
	if wake {
		close(old.changed)
	}
}

// sorted returns the selectors as a set.
func sorted(selectors attest.Selectors) attest.Selectors {
	for i := 1; i < len(selectors); i++ {
		if selectors[i-1].Compare(selectors[i]) >= 0 {
			return attest.NewSelectors(selectors...)
		}
	}
	return selectors
}

// Needs says whether an entry could be matched by selectors of one type that are
// not known yet: it has at least one that missing accepts, and its others of that
// type are all in known, a set. Selectors of other types are not looked at. It
// goes over all selectors: ask it when something is missing, not for each call.
func (c *Cache) Needs(kind string, known attest.Selectors, missing func(attest.Selector) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.index.needs(kind, known, missing)
}
