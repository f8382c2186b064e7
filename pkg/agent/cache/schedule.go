package cache

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"time"

	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// maxSleep bounds how late the timers notice that the clock was set or the
	// machine slept; what is due then is seen on every access as well.
	maxSleep = time.Minute
	// Replacing SVIDs of a lost authority: spread over lostSpread and
	// lostEach for every SVID, so that one agent asks for 200 a second and
	// many agents not all at once.
	lostSpread = 500 * time.Millisecond
	lostEach   = 5 * time.Millisecond
)

// keepTime does what is due, when it is due.
func (c *Cache) keepTime(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-c.rearm:
		}
		timer.Reset(c.tick(time.Now()))
	}
}

// tick does what is due and returns how long nothing else will be.
func (c *Cache) tick(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.due) > 0 && !c.due[0].due.After(now) {
		c.fall(c.due[0], now)
	}
	c.settled(now)
	if len(c.due) == 0 {
		return maxSleep
	}
	return min(maxSleep, c.due[0].due.Sub(now))
}

// fall does what is due for one record, and schedules what comes next.
func (c *Cache) fall(r *record, now time.Time) {
	if r.live && r.entry.expired(now) {
		c.log.Info("an entry has expired", telemetry.EntryID, r.entry.id, telemetry.SPIFFEID, r.entry.spiffeID)
		c.unlist(r)
		c.dropJWTs(r)
		c.release(r)
	}
	if r.svid != nil && !now.Before(r.svid.notAfter) {
		c.log.Warn("an X509-SVID has expired before another could be had",
			telemetry.EntryID, r.entry.id, telemetry.SPIFFEID, r.entry.spiffeID, telemetry.Err, r.failed)
		r.svid, r.shown = nil, nil
		r.fresh = r.failed == nil
		c.touch(r)
	}
	if r.kept && r.state == idle && !now.Before(r.mintAt) {
		if r.demand == 0 && !r.entry.prefetch {
			c.release(r)
		} else {
			c.enqueue(r)
		}
	}
	c.schedule(r)
}

// schedule puts the record where its next due time belongs.
func (c *Cache) schedule(r *record) {
	var due time.Time
	if r.live && !r.gone {
		if !r.entry.expiresAt.IsZero() {
			due = r.entry.expiresAt
		}
		if r.svid != nil {
			due = earlier(due, r.svid.notAfter)
		}
		if r.kept && r.state == idle {
			due = earlier(due, r.mintAt)
		}
	}
	r.due = due
	switch {
	case due.IsZero() && r.dueAt >= 0:
		heap.Remove(&c.due, r.dueAt)
	case due.IsZero():
	case r.dueAt >= 0:
		heap.Fix(&c.due, r.dueAt)
	default:
		heap.Push(&c.due, r)
	}
	if r.dueAt == 0 {
		select {
		case c.rearm <- struct{}{}:
		default:
		}
	}
}

// rotateAt is the half-life of an SVID, ± 10 %, or sooner for one that is to
// outlast an outage.
func (c *Cache) rotateAt(s *x509SVID) time.Time {
	half := s.notAfter.Sub(s.issued) / 2
	at := s.issued.Add(half + jitter(half/10))
	return svid.RotateFor(c.cfg.AvailabilityTarget, at, s.issued, s.notAfter, rand.Float64()) //nolint:gosec // No secret.
}

// jitter is between -d and d.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(2*d) - d //nolint:gosec // No secret.
}

const (
	retryFirst = 100 * time.Millisecond
	retryMax   = 30 * time.Second
)

// retryAfter is how long to wait after so many failures in a row.
func retryAfter(tries int) time.Duration {
	d := retryMax
	if tries < 10 {
		d = min(d, retryFirst<<max(0, tries-1))
	}
	return d + jitter(d/5)
}

// retryAll tries at once whatever has failed: the server is back.
func (c *Cache) retryAll(now time.Time) {
	for _, r := range c.records {
		if r.failed == nil || !r.kept {
			continue
		}
		r.mintAt, r.tries, r.failed = now, 0, nil
		r.fresh = r.wants()
		c.touch(r)
		c.enqueue(r)
		c.schedule(r)
	}
}

// replaceLost has the SVIDs replaced whose authority was tainted or revoked.
func (c *Cache) replaceLost(old, b *Bundle, now time.Time) {
	var lost []*record
	for _, r := range c.records {
		if r.svid != nil && b.lost(old, r.svid) {
			lost = append(lost, r)
		}
		for key, t := range r.jwts {
			if b.lostJWT(old, t.keyID) {
				c.dropJWT(r, key)
			}
		}
	}
	spread := lostSpread + lostEach*time.Duration(len(lost))
	for _, r := range lost {
		r.mintAt = earlier(r.mintAt, now.Add(rand.N(spread))) //nolint:gosec // No secret.
		c.schedule(r)
	}
	if len(lost) > 0 {
		c.log.Info("replacing X509-SVIDs of a tainted or revoked authority", telemetry.Count, len(lost))
	}
}

// dueHeap has the record that is due first on top.
type dueHeap []*record

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].dueAt, h[j].dueAt = i, j
}

// Push is heap.Interface.
func (h *dueHeap) Push(x any) {
	r := x.(*record)
	r.dueAt = len(*h)
	*h = append(*h, r)
}

// Pop is heap.Interface.
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	r := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	r.dueAt = -1
	return r
}
