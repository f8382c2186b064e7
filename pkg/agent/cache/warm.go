package cache

import "time"

// The warm set: records that are kept have an X509-SVID or are on the way to
// one. Those with demand always are; others up to MaxX509SVIDs, and of these
// the ones used least recently go first.

// renewed is called when the record has new content, or was made.
func (c *Cache) renewed(r *record, now time.Time) {
	r.edition++
	r.failed, r.tries = nil, 0
	if !r.live {
		c.release(r)
		c.schedule(r)
		return
	}
	switch {
	case r.kept || r.demand > 0 || r.entry.prefetch && c.kept < c.cfg.MaxX509SVIDs:
		c.keep(r, now)
	case r.entry.prefetch:
		c.cold[r] = struct{}{}
	}
	c.schedule(r)
}

// use is called when the record gets its first demand.
func (c *Cache) use(r *record) {
	if r.unused != nil {
		c.unused.Remove(r.unused)
		r.unused = nil
	}
	c.keep(r, time.Now())
	c.schedule(r)
}

// unuse is called when the record has lost its last demand.
func (c *Cache) unuse(r *record) {
	if r.kept {
		r.unused = c.unused.PushFront(r)
	}
}

// keep wants an X509-SVID for the record, unless there is one, or one was tried
// for and its next attempt is due later.
func (c *Cache) keep(r *record, now time.Time) {
	delete(c.cold, r)
	if !r.kept {
		r.kept = true
		c.kept++
		if r.demand == 0 {
			r.unused = c.unused.PushBack(r)
		}
	}
	if r.wants() && r.failed == nil {
		r.fresh = true
		r.mintAt = now
		c.enqueue(r)
		c.touch(r)
	}
}

// release gives up the record's X509-SVID and the wish for one.
func (c *Cache) release(r *record) {
	delete(c.cold, r)
	if r.unused != nil {
		c.unused.Remove(r.unused)
		r.unused = nil
	}
	if r.kept {
		r.kept = false
		c.kept--
	}
	if r.state != minting {
		r.state = idle // its place in a queue is passed over
	}
	r.svid, r.shown, r.failed, r.fresh, r.tries = nil, nil, nil, false, 0
	c.touch(r)
	c.schedule(r)
}

// cool releases a record that can be made warm again.
func (c *Cache) cool(r *record) {
	c.release(r)
	if r.live && r.entry.prefetch {
		c.cold[r] = struct{}{}
	}
}

// trim cools records without demand until the warm set has its size.
func (c *Cache) trim() {
	for c.kept > c.cfg.MaxX509SVIDs {
		last := c.unused.Back()
		if last == nil {
			return
		}
		c.cool(last.Value.(*record))
	}
}

// refill makes cold records warm while there is room.
func (c *Cache) refill(now time.Time) {
	for r := range c.cold {
		if c.kept >= c.cfg.MaxX509SVIDs {
			return
		}
		c.keep(r, now)
		c.schedule(r)
	}
}
