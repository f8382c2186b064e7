package fleet

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/credence-id/credence/pkg/agent/feed"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// page is how many entries' versions are kept in one piece, so that an agent
// that holds a few of very many takes little.
const page = 256

// cache is what one agent holds: for each entry of the table the version of it,
// four bytes each.
type cache struct {
	table *table
	// learn is told of bundles.
	learn func(*feedv1.BundleState)

	mu sync.Mutex
	// guarded by mu:
	storeID  string
	revision uint64
	sums     [feedv1.Buckets]uint64
	pages    []*[page]uint32 // by entry number; nil: none held
	held     int
	bundles  map[string]uint64 // trust domain → revision
	// unconfirmed are the entries to be dropped at Synced; nil if no resync is
	// under way.
	unconfirmed map[uint32]struct{}
	diverged    bool
}

// connected is the cache as seen from one connection.
type connected struct {
	*cache
	wire *wire
}

var _ feed.Cache = connected{}

func newCache(t *table, learn func(*feedv1.BundleState)) *cache {
	return &cache{table: t, learn: learn, bundles: map[string]uint64{}}
}

// Open says what is held.
func (c *cache) Open() *feedv1.Open {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unconfirmed = nil
	if c.diverged || c.storeID == "" {
		return &feedv1.Open{}
	}
	sums := c.sums
	o := &feedv1.Open{StoreId: c.storeID, Revision: c.revision, Buckets: sums[:]}
	for td, revision := range c.bundles {
		o.Bundles = append(o.Bundles, &feedv1.BundleVersion{TrustDomain: td, Revision: revision})
	}
	return o
}

// Apply is feed.Cache.
func (c connected) Apply(d *feedv1.Delta) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resync(d.GetResync())
	for _, b := range d.GetBundles() {
		c.bundles[b.GetBundle().GetTrustDomain()] = b.GetRevision()
		c.learn(b)
	}
	for _, td := range d.GetRemovedBundles() {
		delete(c.bundles, td)
	}
	for _, id := range d.GetRemoves() {
		if e, ok := c.table.find(id); ok {
			c.drop(e)
			c.table.entries.at(e).probe.Load().seen()
		}
	}
	for _, v := range c.wire.upserts {
		c.put(v)
	}
	if !d.GetMore() && c.unconfirmed == nil {
		c.revision = d.GetRevision()
	}
	return nil
}

// Synced is feed.Cache.
func (c *cache) Synced(s *feedv1.Synced) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range c.unconfirmed {
		c.drop(e)
		c.table.entries.at(e).probe.Load().seen()
	}
	c.unconfirmed = nil
	c.storeID, c.revision = s.GetStoreId(), s.GetRevision()
	c.diverged = !bytes.Equal(s.GetDigest(), feedv1.Digest(&c.sums))
	if c.diverged {
		return fmt.Errorf("%d entries at revision %d: %w", c.held, s.GetRevision(), feed.ErrDiverged)
	}
	return nil
}

// resync is called with mu held.
func (c *cache) resync(buckets []uint32) {
	if len(buckets) == 0 {
		return
	}
	var named [feedv1.Buckets]bool
	for _, b := range buckets {
		named[b] = true
	}
	if c.unconfirmed == nil {
		c.unconfirmed = map[uint32]struct{}{}
	}
	for i, p := range c.pages {
		if p == nil {
			continue
		}
		for j, v := range p {
			if e := uint32(i*page + j); v != 0 && named[c.table.entries.at(e).bucket] {
				c.unconfirmed[e] = struct{}{}
			}
		}
	}
}

// put is called with mu held.
func (c *cache) put(n uint32) {
	v := c.table.versions.at(n)
	slot := c.slot(v.entry)
	if *slot != 0 {
		delete(c.unconfirmed, v.entry)
		c.sums[c.table.entries.at(v.entry).bucket] ^= c.table.versions.at(*slot).sum
		c.held--
	}
	if *slot != n {
		v.probe.seen()
	}
	*slot = n
	c.sums[c.table.entries.at(v.entry).bucket] ^= v.sum
	c.held++
}

// drop is called with mu held.
func (c *cache) drop(e uint32) {
	slot := c.slot(e)
	if *slot == 0 {
		return
	}
	c.sums[c.table.entries.at(e).bucket] ^= c.table.versions.at(*slot).sum
	c.held--
	*slot = 0
}

// slot is called with mu held.
func (c *cache) slot(e uint32) *uint32 {
	for uint32(len(c.pages)) <= e/page {
		c.pages = append(c.pages, nil)
	}
	p := &c.pages[e/page]
	if *p == nil {
		*p = new([page]uint32)
	}
	return &(*p)[e%page]
}

// size is how many entries are held.
func (c *cache) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held
}

// pick is the ID of an entry held, the same for the same n while the set does
// not change; false when nothing is.
func (c *cache) pick(n uint64) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slots := uint64(len(c.pages) * page)
	if c.held == 0 {
		return "", false
	}
	for i := range slots {
		e := (n + i) % slots
		if p := c.pages[e/page]; p != nil && p[e%page] != 0 {
			return c.table.entries.at(uint32(e)).id, true
		}
	}
	return "", false
}

// polled is the cache of an agent that polls: package feed keeps the entries.
type polled struct{}

var _ feed.Cache = (*polled)(nil)

// Open is feed.Cache.
func (*polled) Open() *feedv1.Open { return &feedv1.Open{} }

// Apply is feed.Cache.
func (*polled) Apply(*feedv1.Delta) error { return nil }

// Synced is feed.Cache.
func (*polled) Synced(*feedv1.Synced) error { return nil }
