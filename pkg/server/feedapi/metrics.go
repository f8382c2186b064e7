package feedapi

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one hub.
type metrics struct {
	messages prometheus.Counter
	resyncs  prometheus.Counter
	replaced prometheus.Counter
	drains   prometheus.Counter
	all      []prometheus.Collector
}

func newMetrics(h *Hub) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		messages: counter("credence_feed_messages_total", "Messages sent to agents."),
		resyncs:  counter("credence_feed_resyncs_total", "Times an agent was sent whole buckets of entries."),
		replaced: counter("credence_feed_replaced_total", "Streams that ended because the agent opened a newer one."),
		drains:   counter("credence_feed_drains_total", "Times an agent was asked to go to another server."),
	}
	m.all = []prometheus.Collector{
		m.messages, m.resyncs, m.replaced, m.drains,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credence_feed_streams", Help: "Agents that have a stream to this server.",
		}, func() float64 {
			h.mu.Lock()
			defer h.mu.Unlock()
			return float64(len(h.streams))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credence_feed_revision", Help: "Revision of the store that was published last.",
		}, func() float64 { return float64(h.revision.Load()) }),
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("registering the feed's metrics: %w", err)
		}
	}
	return nil
}
