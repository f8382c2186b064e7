package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config is the section telemetry of a configuration file.
type Config struct {
	// Prometheus starts a metrics listener; nil starts none.
	Prometheus *PrometheusConfig `hcl:"Prometheus"`
}

// Validate checks the section; the error names the file key.
func (c Config) Validate() error {
	if c.Prometheus == nil {
		return nil
	}
	return c.Prometheus.validate()
}

// PrometheusConfig is the section telemetry { Prometheus { … } }.
type PrometheusConfig struct {
	// Host is the address to listen on; default "localhost".
	Host string `hcl:"host"`
	// Port is the TCP port to listen on, 1 to 65535; it has no default.
	Port int `hcl:"port"`
}

func (c PrometheusConfig) validate() error {
	if c.Port < 1 || c.Port > 65535 {
		return fmt.Errorf("telemetry.Prometheus.port: port %d is not between 1 and 65535", c.Port)
	}
	return nil
}

// NewRegistry returns a registry with the Go runtime's and the process's own
// metrics in it.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return reg
}

func (c PrometheusConfig) host() string { return cmp.Or(c.Host, "localhost") }

// ListenMetrics opens the address of telemetry.Prometheus, for
// [Listener.Serve]: a program does so before it writes anything. It is nil when
// there is no such section. The error names the file key.
func (c Config) ListenMetrics(ctx context.Context) (net.Listener, error) {
	if c.Prometheus == nil {
		return nil, nil //nolint:nilnil // as documented
	}
	return listen(ctx, c.Prometheus.host(), strconv.Itoa(c.Prometheus.Port), "telemetry.Prometheus.host", "telemetry.Prometheus.port")
}

// NewPrometheus returns the listener that shows what is in gatherer, on every
// path, as SPIRE does (scrapers ask for /metrics).
func NewPrometheus(c PrometheusConfig, gatherer prometheus.Gatherer, log *slog.Logger) (*Listener, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	handler := promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: 4,
		Timeout:             requestTimeout / 2,
	})
	return &Listener{
		name:    "prometheus",
		handler: getOnly(handler),
		log:     log,
	}, nil
}

// getOnly refuses everything but GET and HEAD.
func getOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}
