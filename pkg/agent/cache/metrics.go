package cache

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the cache. There are no labels with unbounded values.
type metrics struct {
	collectors []prometheus.Collector
	results    *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	jwtHits    prometheus.Counter
	diverged   prometheus.Counter
}

func newMetrics(c *Cache) *metrics {
	gauge := func(name, help string, read func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "credence", Subsystem: "agent_cache", Name: name, Help: help}, func() float64 {
			c.mu.Lock()
			defer c.mu.Unlock()
			return float64(read())
		})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "credence", Subsystem: "agent_cache", Name: name, Help: help})
	}
	m := &metrics{
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "credence", Subsystem: "agent_cache", Name: "mint_total",
			Help: "SVIDs asked for, by kind (x509, jwt) and result (ok, error).",
		}, []string{"kind", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "credence", Subsystem: "agent_cache", Name: "mint_seconds",
			Help:    "Time of one call to the server for SVIDs, keys included, by kind.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"kind"}),
		jwtHits:  counter("jwt_hits_total", "JWT-SVIDs given out again without asking the server."),
		diverged: counter("diverged_total", "Times the entries held were not those of the server's digest."),
	}
	m.collectors = []prometheus.Collector{
		m.results, m.seconds, m.jwtHits, m.diverged,
		gauge("entries", "Entries held.", func() int { return len(c.records) }),
		gauge("x509_svids", "Entries whose X509-SVID is kept warm or in use.", func() int { return c.kept }),
		gauge("jwt_svids", "JWT-SVIDs kept.", c.jwts.Len),
		gauge("identity_sets", "Different sets of entries that workloads match.", func() int { return len(c.grantees) }),
		gauge("selector_sets", "Different sets of selectors of workloads, connected now or lately.", func() int { return len(c.views) }),
		identities{c},
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, collector := range m.collectors {
		if err := r.Register(collector); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) minted(jobs []*job, err error, d time.Duration) {
	ok := 0
	for _, j := range jobs {
		if err == nil && j.err == nil {
			ok++
		}
	}
	m.results.WithLabelValues("x509", "ok").Add(float64(ok))
	m.results.WithLabelValues("x509", "error").Add(float64(len(jobs) - ok))
	m.seconds.WithLabelValues("x509").Observe(d.Seconds())
}

func (m *metrics) mintedJWT(err error, d time.Duration) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.results.WithLabelValues("jwt", result).Inc()
	m.seconds.WithLabelValues("jwt").Observe(d.Seconds())
}
