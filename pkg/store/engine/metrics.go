package engine

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of one open store.
type Metrics []prometheus.Collector

// Register registers all of them or none. r may be nil.
func (m Metrics) Register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for i, c := range m {
		if err := r.Register(c); err != nil {
			m[:i].Unregister(r)
			return fmt.Errorf("store: registering metrics: %w", err)
		}
	}
	return nil
}

// Unregister takes them back. r may be nil.
func (m Metrics) Unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m {
		r.Unregister(c)
	}
}

// History are the gauges of a ring.
func History(r *Ring) Metrics {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	return Metrics{
		gauge("credence_store_revision", "Newest revision that this process has seen committed.", func() float64 {
			head, _ := r.Head()
			return float64(head)
		}),
		gauge("credence_store_history_batches", "Batches kept for watchers.", func() float64 {
			n, _ := r.Size()
			return float64(n)
		}),
		gauge("credence_store_history_bytes", "Bytes of the batches kept for watchers.", func() float64 {
			_, n := r.Size()
			return float64(n)
		}),
	}
}
