package attestor

import "github.com/prometheus/client_golang/prometheus"

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

// of are the metrics of one attestor.
func (m *metrics) of(name string) each {
	return each{m.seconds.WithLabelValues(name), m.failures.WithLabelValues(name)}
}

type each struct {
	seconds  prometheus.Observer
	failures prometheus.Counter
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
