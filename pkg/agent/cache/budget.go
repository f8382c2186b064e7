package cache

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Budget says for how long a cache could serve workloads if the server vanished
// now, and whom. Each entry that can be served is counted once.
type Budget struct {
	// Left is until the first X509-SVID held expires; zero when there is none,
	// and when a workload waits for one.
	Left time.Duration
	// InUse entries have an X509-SVID that an open stream follows.
	InUse int
	// Warm entries have one, should a workload come that needs it.
	Warm int
	// Missing entries have none, and a workload waits for it.
	Missing int
	// Cold entries have none: a workload that came for it would get nothing.
	Cold int
}

// Entries are all that can be served to somebody.
func (b Budget) Entries() int { return b.InUse + b.Warm + b.Missing + b.Cold }

// Budget is that of now. It looks at the entries that are kept warm or in use,
// however many others there are.
func (c *Cache) Budget(now time.Time) Budget {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b Budget
	var first time.Time
	see := func(r *record, held *int) bool {
		if r.svid == nil || !now.Before(r.svid.notAfter) {
			return false
		}
		*held++
		first = earlier(first, r.svid.notAfter)
		return true
	}
	for r := range c.demanded() {
		if !see(r, &b.InUse) {
			b.Missing++
		}
	}
	for e := c.unused.Front(); e != nil; e = e.Next() {
		see(e.Value.(*record), &b.Warm)
	}
	b.Cold = c.index.size - b.InUse - b.Missing - b.Warm
	if b.Missing == 0 && !first.IsZero() {
		b.Left = first.Sub(now)
	}
	return b
}

// demanded are the records that somebody waits on or follows.
func (c *Cache) demanded() map[*record]struct{} {
	out := make(map[*record]struct{})
	for _, s := range c.grantees {
		if s.demand == 0 {
			continue
		}
		for _, r := range s.records {
			if r.live {
				out[r] = struct{}{}
			}
		}
	}
	return out
}

// identities shows the counts of a Budget.
type identities struct{ c *Cache }

var identitiesDesc = prometheus.NewDesc("credence_agent_cache_identities",
	"Entries that can be served, by what of their X509-SVID is held: in_use and warm are; missing (a workload waits) and cold are not.",
	[]string{"state"}, nil)

// Describe is prometheus.Collector.
func (i identities) Describe(out chan<- *prometheus.Desc) { out <- identitiesDesc }

// Collect is prometheus.Collector.
func (i identities) Collect(out chan<- prometheus.Metric) {
	b := i.c.Budget(time.Now())
	for state, n := range map[string]int{"in_use": b.InUse, "warm": b.Warm, "missing": b.Missing, "cold": b.Cold} {
		out <- prometheus.MustNewConstMetric(identitiesDesc, prometheus.GaugeValue, float64(n), state)
	}
}
