package bolt

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
)

// metrics of one open store.
type metrics struct {
	commit   prometheus.Histogram
	group    prometheus.Histogram
	failures prometheus.Counter
	all      []prometheus.Collector
}

func newMetrics(s *Store) *metrics {
	m := &metrics{
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "credence_store_commit_duration_seconds",
			Help:    "Time to write and sync one group of updates.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15),
		}),
		group: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "credence_store_commit_updates",
			Help:    "Updates that shared one commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 9),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "credence_store_commit_failures_total",
			Help: "Commits that the disk refused.",
		}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.all = []prometheus.Collector{
		m.commit, m.group, m.failures,
		gauge("credence_store_revision", "Newest committed revision.", func() float64 {
			head, _ := s.ring.newest()
			return float64(head)
		}),
		gauge("credence_store_history_batches", "Batches kept for watchers.", func() float64 {
			n, _ := s.ring.size()
			return float64(n)
		}),
		gauge("credence_store_history_bytes", "Bytes of the batches kept for watchers.", func() float64 {
			_, n := s.ring.size()
			return float64(n)
		}),
		gauge("credence_store_size_bytes", "Size of the database in its file.", s.size),
	}
	return m
}

// size of the database, without the room bbolt keeps at the file's end.
func (s *Store) size() (n float64) {
	if s.enter() != nil {
		return 0
	}
	defer s.readers.Done()
	if err := s.db.View(func(tx *bbolt.Tx) error {
		n = float64(tx.Size())
		return nil
	}); err != nil {
		return 0
	}
	return n
}

func (m *metrics) committed(took time.Duration, updates int) {
	m.commit.Observe(took.Seconds())
	m.group.Observe(float64(updates))
}

func (m *metrics) failed() { m.failures.Inc() }

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for i, c := range m.all {
		if err := r.Register(c); err != nil {
			for _, done := range m.all[:i] {
				r.Unregister(done)
			}
			return fmt.Errorf("store: registering metrics: %w", err)
		}
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.all {
		r.Unregister(c)
	}
}
