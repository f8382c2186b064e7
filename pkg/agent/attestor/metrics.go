package attestor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	seconds  *prometheus.HistogramVec
	failures *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "credence", Subsystem: "workload_attestor", Name: "seconds",
			Help:    "Time an attestor took for one process, by attestor.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 8, 7),
		}, []string{"attestor"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "credence", Subsystem: "workload_attestor", Name: "failures_total",
			Help: "Times an attestor could not tell about a process, by attestor.",
		}, []string{"attestor"}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.seconds, m.failures} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) asked(name string, err error, d time.Duration) {
	m.seconds.WithLabelValues(name).Observe(d.Seconds())
	if err != nil {
		m.failures.WithLabelValues(name).Inc()
	}
}
