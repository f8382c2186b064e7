package etcd

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one open store. Those that bolt has too have the same names.
type metrics struct {
	commit     prometheus.Histogram
	failures   prometheus.Counter
	conflicts  prometheus.Counter
	outcomes   *prometheus.CounterVec
	causes     *prometheus.CounterVec
	feedBreaks prometheus.Counter
	all        []prometheus.Collector
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
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.all = []prometheus.Collector{
		m.commit, m.failures, m.conflicts, m.outcomes, m.causes, m.feedBreaks,
		gauge("credence_store_revision", "Newest revision that this process has seen committed.", func() float64 {
			head, _, _ := s.ring.reached()
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
		gauge("credence_store_available", "Whether the last call of etcd was answered and the last commit taken.", func() float64 {
			if s.down.Load() || s.refusing.Load() != nil {
				return 0
			}
			return 1
		}),
	}
	return m
}

func (m *metrics) failed(c cause) { m.causes.WithLabelValues(c.name).Inc() }

func (m *metrics) resolved(outcome string) { m.outcomes.WithLabelValues(outcome).Inc() }

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
