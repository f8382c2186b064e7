package ca

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/pkg/svid"
)

// metrics of one authority.
type metrics struct {
	x509, jwt prometheus.Counter
	refusals  *prometheus.CounterVec
	all       []prometheus.Collector
}

func newMetrics(a *Authority) *metrics {
	count := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credence_ca_issued_total",
		Help: "SVIDs signed, by kind.",
	}, []string{"kind"})
	m := &metrics{
		x509: count.WithLabelValues("x509"),
		jwt:  count.WithLabelValues("jwt"),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credence_ca_refused_total",
			Help: "Requests that were not signed, by kind and reason: profile, not_ready, key.",
		}, []string{"kind", "reason"}),
	}
	m.all = []prometheus.Collector{
		count, m.refusals,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "credence_ca_issued_index_dropped_total",
			Help: "Issued SVIDs that the index of unexpired ones has no record of.",
		}, func() float64 { return float64(a.issued.dropped.Load()) }),
	}
	for _, r := range []*rotor{a.x509, a.jwt} {
		m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "credence_ca_authority_expires_seconds",
			Help:        "Seconds until the active authority expires; negative when there is none that may sign.",
			ConstLabels: prometheus.Labels{"kind": r.name()},
		}, r.remaining))
	}
	return m
}

func (r *rotor) remaining() float64 {
	s := r.signer.Load()
	if s == nil || r.missing.Load() {
		return -1
	}
	return time.Until(s.member.notAfter).Seconds()
}

func (m *metrics) issued(kind string) {
	if kind == "x509" {
		m.x509.Inc()
		return
	}
	m.jwt.Inc()
}

// refused counts the error by its kind and returns it.
func (m *metrics) refused(r *rotor, err error) error {
	reason := "key"
	switch {
	case errors.Is(err, ErrNotReady):
		reason = "not_ready"
	case errors.Is(err, svid.ErrRefused):
		reason = "profile"
	}
	m.refusals.WithLabelValues(r.name(), reason).Inc()
	return err
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for i, c := range m.all {
		if err := r.Register(c); err != nil {
			for _, done := range m.all[:i] {
				r.Unregister(done)
			}
			return fmt.Errorf("ca: registering metrics: %w", err)
		}
	}
	return nil
}
