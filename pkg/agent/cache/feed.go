package cache

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/agent/feed"
	"github.com/credence-id/credence/pkg/telemetry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"google.golang.org/protobuf/proto"
)

var _ feed.Cache = (*Cache)(nil)

// cursor is where the cache stands in the server's log.
type cursor struct {
	storeID  string
	revision uint64
	sums     [feedv1.Buckets]uint64
	// resyncing: some records are unconfirmed until Synced.
	resyncing bool
	// diverged: what is held is not what the server said, so that it does not
	// count as a cursor. It is served on until the server has said it all again.
	diverged bool
}

// Open says what the cache holds, as the feed's first message.
func (c *Cache) Open() *feedv1.Open {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A resync that was cut short left what it did not get to: all of that is
	// held and counted, so the server can say again what differs.
	for _, r := range c.records {
		r.unconfirmed = false
	}
	c.cursor.resyncing = false
	whole := !c.cursor.diverged && (len(c.records) > 0 || c.cursor.storeID != "")
	o := &feedv1.Open{}
	if whole {
		o.StoreId, o.Revision = c.cursor.storeID, c.cursor.revision
		sums := c.cursor.sums
		o.Buckets = sums[:]
	}
	for name, b := range c.bundles {
		b.unconfirmed = !whole
		if whole {
			o.Bundles = append(o.Bundles, &feedv1.BundleVersion{TrustDomain: name, Revision: b.version.GetRevision()})
		}
	}
	return o
}

// Apply takes one Delta. SVIDs that are missing now are minted at once, and
// subscribers are told of what can be told before Apply returns. An error says
// that the Delta makes no sense; nothing of it was applied then.
func (c *Cache) Apply(d *feedv1.Delta) error {
	entries, bundles, err := c.parse(d)
	if err != nil {
		return err
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resync(d.GetResync())
	for _, b := range bundles {
		c.putBundle(b, now)
	}
	for _, name := range d.GetRemovedBundles() {
		c.dropBundle(name)
	}
	for _, id := range d.GetRemoves() {
		if r := c.records[id]; r != nil {
			c.forget(r)
		}
	}
	for _, e := range entries {
		c.put(e, now)
	}
	if !d.GetMore() && !c.cursor.resyncing {
		c.cursor.revision = d.GetRevision()
	}
	c.settled(now)
	c.changed(false)
	return nil
}

// Synced is told where the server stands. When the digest is not that of what
// is held it returns feed.ErrDiverged, and the next Open is empty; workloads
// are served from what there is meanwhile. A server that keeps no digest leaves
// it empty.
func (c *Cache) Synced(s *feedv1.Synced) error {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cursor.resyncing {
		for _, r := range c.records {
			if r.unconfirmed {
				c.forget(r)
			}
		}
		c.cursor.resyncing = false
	}
	for name, b := range c.bundles {
		if b.unconfirmed {
			c.dropBundle(name)
		}
	}
	c.cursor.storeID, c.cursor.revision = s.GetStoreId(), s.GetRevision()
	digest := feedv1.Digest(&c.cursor.sums)
	c.cursor.diverged = len(s.GetDigest()) > 0 && !bytes.Equal(s.GetDigest(), digest)
	if c.cursor.diverged {
		c.settled(now)
		c.metrics.diverged.Inc()
		return fmt.Errorf("%d entries at revision %d: %w", len(c.records), s.GetRevision(), feed.ErrDiverged)
	}
	if p := c.phase.Load(); !p.synced || p.away != nil {
		c.setPhase(true, nil)
	}
	c.retryAll(now)
	c.settled(now)
	c.changed(false)
	return nil
}

func (c *Cache) parse(d *feedv1.Delta) ([]*entry, []*Bundle, error) {
	for _, n := range d.GetResync() {
		if n >= feedv1.Buckets {
			return nil, nil, fmt.Errorf("delta at revision %d: resync names bucket %d of %d", d.GetRevision(), n, feedv1.Buckets)
		}
	}
	entries := make([]*entry, 0, len(d.GetUpserts()))
	for _, v := range d.GetUpserts() {
		if v.GetEntry().GetId() == "" {
			return nil, nil, fmt.Errorf("delta at revision %d: an entry has no ID", d.GetRevision())
		}
		e := parseEntry(c.cfg.TrustDomain, v)
		if e.refused != nil && !errors.Is(e.refused, errStored) {
			c.log.Warn("an entry cannot be served", telemetry.EntryID, e.id, telemetry.Err, e.refused)
		}
		entries = append(entries, e)
	}
	bundles := make([]*Bundle, 0, len(d.GetBundles()))
	for _, v := range d.GetBundles() {
		b, err := parseBundle(v)
		if err != nil {
			c.log.Warn("a bundle cannot be used in full", telemetry.TrustDomain, v.GetBundle().GetTrustDomain(), telemetry.Err, err)
		}
		if b != nil {
			bundles = append(bundles, b)
		}
	}
	return entries, bundles, nil
}

// resync marks the records of some buckets as held only if they are sent again
// before Synced. They are served until then.
func (c *Cache) resync(buckets []uint32) {
	if len(buckets) == 0 {
		return
	}
	var named [feedv1.Buckets]bool
	for _, n := range buckets {
		named[n] = true
	}
	c.cursor.resyncing = true
	for id, r := range c.records {
		r.unconfirmed = r.unconfirmed || named[feedv1.Bucket(id)]
	}
}

// put makes e the newest version of its entry.
func (c *Cache) put(e *entry, now time.Time) {
	r := c.records[e.id]
	if r == nil {
		r = &record{dueAt: -1, grantees: map[*grantee]struct{}{}}
		c.records[e.id] = r
	} else {
		c.count(r)
		r.unconfirmed = false
	}
	if r.entry != nil && proto.Equal(r.entry.version.GetEntry(), e.version.GetEntry()) {
		c.replaceVersion(r, e)
		c.count(r)
		return
	}
	c.unlist(r)
	r.entry = e
	c.count(r)
	c.dropJWTs(r)
	if e.refused == nil && !e.expired(now) {
		c.list(r)
	}
	c.touch(r)
	c.renewed(r, now)
}

// replaceVersion is for an entry of which only the place in the log is new.
func (c *Cache) replaceVersion(r *record, e *entry) {
	same := *r.entry
	same.version = e.version
	if r.shown == r.entry {
		r.shown = &same
	}
	r.entry = &same
}

// count adds the record to the digest, or takes it out again.
func (c *Cache) count(r *record) {
	id := r.entry.id
	c.cursor.sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, r.entry.version.GetRevision())
}

// list makes the record found by its selectors.
func (c *Cache) list(r *record) {
	r.live = true
	c.index.add(r)
	c.touchViews(r)
}

// unlist takes that back.
func (c *Cache) unlist(r *record) {
	if !r.live {
		return
	}
	c.touchViews(r)
	c.index.remove(r)
	r.live = false
}

// forget removes the record with all that was made for it.
func (c *Cache) forget(r *record) {
	c.count(r)
	c.unlist(r)
	c.dropJWTs(r)
	c.release(r)
	r.gone = true
	delete(c.records, r.entry.id)
}

func (c *Cache) putBundle(b *Bundle, now time.Time) {
	name := b.TrustDomain.Name()
	old := c.bundles[name]
	if old != nil && proto.Equal(old.version.GetBundle(), b.version.GetBundle()) {
		old.version, old.unconfirmed = b.version, false
		return
	}
	c.bundles[name] = b
	c.touchFederation(name)
	if b.TrustDomain == c.cfg.TrustDomain {
		c.replaceLost(old, b, now)
	}
}

func (c *Cache) dropBundle(name string) {
	if c.bundles[name] != nil {
		delete(c.bundles, name)
		c.touchFederation(name)
	}
}

// touchFederation marks the grants that have the bundle in them.
func (c *Cache) touchFederation(name string) {
	for _, g := range c.grantees {
		if name == c.cfg.TrustDomain.Name() || g.federates(name) {
			c.dirtySets[g] = struct{}{}
		}
	}
}
