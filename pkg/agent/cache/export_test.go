package cache

import feedv1 "github.com/credence-id/credence/proto/feed/v1"

// MatchedIDs are the entries the subscription matches.
func (s *Subscription) MatchedIDs() []string {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	var ids []string
	for _, r := range s.view.grantee.records {
		ids = append(ids, r.entry.id)
	}
	return ids
}

// Sums are the bucket sums as they are kept.
func (c *Cache) Sums() [feedv1.Buckets]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cursor.sums
}

// Sizes are what must not grow without end.
func (c *Cache) Sizes() (views, grantees, selectors, kept, unused, due, jwts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.views), len(c.grantees), len(c.viewsBy), c.kept, c.unused.Len(), len(c.due), c.jwts.Len()
}

const MaxIdleViews = maxIdleViews

// Available is available.
func (c *Cache) Available(svids []JWTSVID, errs []error) ([]JWTSVID, error) {
	return c.available(svids, errs)
}
