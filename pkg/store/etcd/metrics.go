package etcd

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/pkg/store/engine"
)

// metrics of one open store. Those that bolt has too have the same names.
type metrics struct {
	commit     prometheus.Histogram
	failures   prometheus.Counter
	conflicts  prometheus.Counter
	outcomes   *prometheus.CounterVec
	causes     *prometheus.CounterVec
	feedBreaks prometheus.Counter
	all        engine.Metrics
}

func newMetrics(s *Store) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "credence_store_commit_duration_seconds",
			Help:    "Time to commit one update in etcd.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		failures:   counter("credence_store_commit_failures_total", "Commits that etcd refused or did not answer."),
		conflicts:  counter("credence_store_conflicts_total", "Commits made again because another changed what was read."),
		outcomes:   vec("credence_store_commits_resolved_total", "Commits whose answer was lost, by what became of them.", "outcome"),
		causes:     vec("credence_store_errors_total", "Calls of etcd that were given up, by cause.", "cause"),
		feedBreaks: counter("credence_store_feed_interruptions_total", "Times that the watch of etcd ended and was begun again."),
	}
	available := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "credence_store_available", Help: "Whether the last call of etcd was answered and the last commit taken.",
	}, func() float64 {
		if s.down.Load() || s.refusing.Load() != nil {
			return 0
		}
		return 1
	})
	m.all = engine.Metrics{m.commit, m.failures, m.conflicts, m.outcomes, m.causes, m.feedBreaks, available}
	return m
}

func (m *metrics) failed(c cause) { m.causes.WithLabelValues(c.name).Inc() }

func (m *metrics) resolved(outcome string) { m.outcomes.WithLabelValues(outcome).Inc() }
