package bolt

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"

	"github.com/credence-id/credence/pkg/store/engine"
)

// metrics of one open store.
type metrics struct {
	commit   prometheus.Histogram
	group    prometheus.Histogram
	failures prometheus.Counter
	all      engine.Metrics
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
	m.all = append(engine.History(s.ring), m.commit, m.group, m.failures, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "credence_store_size_bytes", Help: "Size of the database in its file.",
	}, s.size))
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
