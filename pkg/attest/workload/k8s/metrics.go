package k8s

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	lists    *prometheus.CounterVec
	events   *prometheus.CounterVec
	requests prometheus.Counter
}

func newMetrics() *metrics {
	const namespace, subsystem = "credence", "k8s"
	return &metrics{
		lists: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "lists_total",
			Help: "Lists that the API server has given, by what is listed.",
		}, []string{"resource"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "events_total",
			Help: "Events of watches, by what is watched.",
		}, []string{"resource"}),
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "kubelet_requests_total",
			Help: "Requests to the kubelet for all pods.",
		}),
	}
}

// register also shows what is known, and how old it is.
func (a *Attestor) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	m := a.metrics
	all := []prometheus.Collector{m.lists, m.events, m.requests, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "credence", Subsystem: "k8s", Name: "pods",
		Help: "Pods of this node that are known.",
	}, func() float64 { return float64(a.pods.count()) })}
	for _, c := range a.contacts {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "credence", Subsystem: "k8s", Name: "api_server_away_seconds",
			Help:        "For how long the API server has not been followed; 0 while it is.",
			ConstLabels: prometheus.Labels{"resource": c.what},
		}, func() float64 { return c.age(time.Now()).Seconds() }))
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
