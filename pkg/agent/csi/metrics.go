package csi

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

// outcome is what was found and done at a target, and a label of the metrics.
type outcome string

const (
	// mounted: there was no mount, now there is one.
	mounted outcome = "mounted"
	// kept: the one mount was as it should be.
	kept outcome = "kept"
	// collapsed: of several mounts on top of each other one is left.
	collapsed outcome = "collapsed"
	// replaced: what was mounted was something else, or the directory as it was
	// before somebody removed it.
	replaced outcome = "replaced"
	// unmounted: there is no mount any more.
	unmounted outcome = "unmounted"
	// absent: there was no mount.
	absent outcome = "absent"
	// foreign: the mount is another driver's, and was left alone.
	foreign outcome = "foreign"
	// failed: it could not be found out or done.
	failed outcome = "failed"
)

type metrics struct {
	calls       *prometheus.CounterVec
	published   *prometheus.CounterVec
	unpublished *prometheus.CounterVec
	adopted     *prometheus.CounterVec
	registered  prometheus.Gauge
	volumes     prometheus.Gauge

	mu sync.Mutex
	// guarded by mu:
	targets map[string]bool // at which there is a mount of ours
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "credence", Subsystem: "csi", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "credence", Subsystem: "csi", Name: name, Help: help})
	}
	return &metrics{
		calls:       counter("calls_total", "Calls of kubelet that have ended, by method and status code.", "method", "code"),
		published:   counter("published_total", "Volumes that kubelet asked for and that are in place, by what was done for that.", "outcome"),
		unpublished: counter("unpublished_total", "Volumes that kubelet gave back, by what was done for that.", "outcome"),
		adopted:     counter("adopted_total", "Mounts that were looked at after a start, or after the socket's directory was made again, by what was done.", "outcome"),
		registered:  gauge("registered", "1 while kubelet's last word on the registration is that it has succeeded."),
		volumes:     gauge("volumes", "Volumes that are mounted."),
		targets:     make(map[string]bool),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.calls, m.published, m.unpublished, m.adopted, m.registered, m.volumes} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) call(method string, err error) {
	m.calls.WithLabelValues(method, status.Code(err).String()).Inc()
}

// has says whether a target has a mount of ours.
func (m *metrics) has(path string, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if yes {
		m.targets[path] = true
	} else {
		delete(m.targets, path)
	}
	m.volumes.Set(float64(len(m.targets)))
}
