package telemetry

import (
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

// Config is the section telemetry of a configuration file, with its defaults
// filled in (the tags are those of package config).
type Config struct {
	// Prometheus starts a metrics listener.
	Prometheus *PrometheusConfig `hcl:"Prometheus" unset:"no listener"`
	// DogStatsd pushes metrics to Datadog's agent.
	DogStatsd []StatsdConfig `hcl:"DogStatsd" refused:"this version pushes no metrics; use Prometheus, whose listener Datadog's agent can read"`
	// Statsd pushes metrics to a statsd server.
	Statsd []StatsdConfig `hcl:"Statsd" refused:"this version pushes no metrics; use Prometheus, and an exporter where statsd is needed"`
	// M3 pushes metrics to M3.
	M3 []M3Config `hcl:"M3" refused:"this version pushes no metrics; use Prometheus, which M3's coordinator can read"`
	// InMem keeps metrics in memory and writes them to the log at SIGUSR1.
	InMem *InMemConfig `hcl:"InMem" accepted:"metrics are shown by the Prometheus listener alone"`

	// MetricPrefix is put before the names of SPIRE's metrics.
	MetricPrefix string `hcl:"MetricPrefix" accepted:"names of metrics are fixed; relabel them where they are collected"`
	// EnableTrustDomainLabel puts the trust domain on SPIRE's metrics.
	EnableTrustDomainLabel *bool `hcl:"EnableTrustDomainLabel" accepted:"labels of metrics are fixed; add others where they are collected"`
	// EnableHostnameLabel puts the host's name on SPIRE's metrics.
	EnableHostnameLabel *bool `hcl:"EnableHostnameLabel" accepted:"labels of metrics are fixed; add others where they are collected"`
	// AllowedPrefixes are the only metrics that SPIRE shows.
	AllowedPrefixes []string `hcl:"AllowedPrefixes" accepted:"all metrics are shown; drop some where they are collected"`
	// BlockedPrefixes are metrics that SPIRE does not show.
	BlockedPrefixes []string `hcl:"BlockedPrefixes" accepted:"all metrics are shown; drop some where they are collected"`
	// AllowedLabels are the only labels that SPIRE shows.
	AllowedLabels []string `hcl:"AllowedLabels" accepted:"all metrics are shown; drop some where they are collected"`
	// BlockedLabels are labels that SPIRE does not show.
	BlockedLabels []string `hcl:"BlockedLabels" accepted:"all metrics are shown; drop some where they are collected"`
}

// StatsdConfig is one item of the lists telemetry.Statsd and DogStatsd.
type StatsdConfig struct {
	// Address is host:port.
	Address string `hcl:"address"`
}

// M3Config is one item of the list telemetry.M3.
type M3Config struct {
	// Address is host:port.
	Address string `hcl:"address"`
	// Env is M3's environment.
	Env string `hcl:"env"`
}

// InMemConfig is the section telemetry.InMem.
type InMemConfig struct {
	// Enabled switches the section on.
	Enabled *bool `hcl:"enabled"`
}

// Validate reports the problems of the section, each with its key.
func (c Config) Validate(report func(key, format string, args ...any)) {
	if c.Prometheus != nil {
		c.Prometheus.validate(report)
	}
}

// PrometheusConfig is the section telemetry { Prometheus { … } }.
type PrometheusConfig struct {
	// Host is the address to listen on.
	Host string `hcl:"host" default:"localhost"`
	// Port is the TCP port to listen on; required.
	Port int `hcl:"port"`
	// TLS encrypts the listener.
	TLS *PrometheusTLSConfig `hcl:"tls" refused:"the metrics listener speaks plain HTTP; keep it on localhost behind a proxy that speaks TLS, and remove the section"`
}

// PrometheusTLSConfig is the section telemetry.Prometheus.tls.
type PrometheusTLSConfig struct {
	// CertFile is the listener's certificate, PEM.
	CertFile string `hcl:"cert_file"`
	// KeyFile is the certificate's key, PEM.
	KeyFile string `hcl:"key_file"`
	// ClientCAFile has the authorities of clients, PEM.
	ClientCAFile string `hcl:"client_ca_file"`
	// UseSPIRESVID serves with the program's own SVID.
	UseSPIRESVID bool `hcl:"use_spire_svid"`
	// AuthorizedSPIFFEIDs are the clients let in.
	AuthorizedSPIFFEIDs []string `hcl:"authorized_spiffe_ids"`
}

func (c PrometheusConfig) validate(report func(key, format string, args ...any)) {
	if c.Port < 1 || c.Port > 65535 {
		report("telemetry.Prometheus.port", "port %d is not between 1 and 65535", c.Port)
	}
}

// firstProblem makes an error of the first problem that check reports.
func firstProblem(check func(report func(key, format string, args ...any))) (err error) {
	check(func(key, format string, args ...any) {
		if err == nil {
			err = fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...))
		}
	})
	return err
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

// Endpoint is where the metrics are shown; the zero value if they are not.
func (c Config) Endpoint() Endpoint {
	if c.Prometheus == nil {
		return Endpoint{}
	}
	return Endpoint{c.Prometheus.Host, strconv.Itoa(c.Prometheus.Port), "telemetry.Prometheus.port"}
}

// ListenMetrics opens the address of telemetry.Prometheus, for
// [Listener.Serve]: a program does so before it writes anything. It is nil when
// there is no such section. The error names the file key.
func (c Config) ListenMetrics(ctx context.Context) (net.Listener, error) {
	if c.Prometheus == nil {
		return nil, nil //nolint:nilnil // as documented
	}
	return listen(ctx, c.Prometheus.Host, strconv.Itoa(c.Prometheus.Port), "telemetry.Prometheus.host", "telemetry.Prometheus.port")
}

// NewPrometheus returns the listener that shows what is in gatherer, on every
// path, as SPIRE does (scrapers ask for /metrics).
func NewPrometheus(c PrometheusConfig, gatherer prometheus.Gatherer, log *slog.Logger) (*Listener, error) {
	if err := firstProblem(c.validate); err != nil {
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
