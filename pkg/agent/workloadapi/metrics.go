package workloadapi

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

type metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	streams prometheus.Gauge
	refused *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "credence", Subsystem: "workload_api", Name: "calls_total",
			Help: "RPCs that have ended, by method and status code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "credence", Subsystem: "workload_api", Name: "call_seconds",
			Help:    "Time of RPCs that are not streams, by method.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}, []string{"method"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "credence", Subsystem: "workload_api", Name: "streams",
			Help: "Streams that are open.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "credence", Subsystem: "workload_api", Name: "refused_total",
			Help: "Connections and calls over a limit, by the limit.",
		}, []string{"limit"}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.calls, m.seconds, m.streams, m.refused} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// call counts an RPC that has ended with *err.
func (m *metrics) call(method string, start time.Time, err *error) {
	m.calls.WithLabelValues(method, status.Code(*err).String()).Inc()
	if method == "FetchJWTSVID" || method == "ValidateJWTSVID" {
		m.seconds.WithLabelValues(method).Observe(time.Since(start).Seconds())
	}
}
