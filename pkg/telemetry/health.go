package telemetry

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Checker says whether something holds; its error is shown to whoever can reach
// the health listener, so it names the cause and no secret. It returns quickly:
// ctx is the request's.
type Checker func(ctx context.Context) error

// HealthConfig is the section health_checks of a configuration file, with its
// defaults filled in (the tags are those of package config).
type HealthConfig struct {
	// ListenerEnabled starts the HTTP listener.
	ListenerEnabled bool `hcl:"listener_enabled"`
	// BindAddress is the address to listen on.
	BindAddress string `hcl:"bind_address" default:"localhost"`
	// BindPort is the TCP port to listen on.
	BindPort string `hcl:"bind_port" default:"80"`
	// LivePath answers whether the process should be left alone.
	LivePath string `hcl:"live_path" default:"/live"`
	// ReadyPath answers whether the process can serve.
	ReadyPath string `hcl:"ready_path" default:"/ready"`
}

// Validate reports the problems of the section, each with its key; none when
// the listener is not enabled.
func (c HealthConfig) Validate(report func(key, format string, args ...any)) {
	if !c.ListenerEnabled {
		return
	}
	if port, err := strconv.Atoi(c.BindPort); err != nil || port < 1 || port > 65535 {
		report("health_checks.bind_port", "%q is not a port between 1 and 65535", c.BindPort)
	}
	if !strings.HasPrefix(c.LivePath, "/") {
		report("health_checks.live_path", "%q does not start with /", c.LivePath)
	}
	if !strings.HasPrefix(c.ReadyPath, "/") {
		report("health_checks.ready_path", "%q does not start with /", c.ReadyPath)
	}
	if c.LivePath == c.ReadyPath {
		report("health_checks.ready_path", "%q is the live path too; the two must differ", c.ReadyPath)
	}
}

// Listen opens the section's address, for [Listener.Serve]: a program does so
// before it writes anything. It is nil when the listener is not enabled. The
// error names the file key.
func (c HealthConfig) Listen(ctx context.Context) (net.Listener, error) {
	if !c.ListenerEnabled {
		return nil, nil //nolint:nilnil // as documented
	}
	return listen(ctx, c.BindAddress, c.BindPort, "health_checks.bind_address", "health_checks.bind_port")
}

// NewHealth returns the listener that answers live and ready: 200 while the
// checker returns nil, else 500 as SPIRE does, with a JSON body either way.
func NewHealth(c HealthConfig, live, ready Checker, log *slog.Logger) (*Listener, error) {
	if err := firstProblem(c.Validate); err != nil {
		return nil, err
	}
	probes := map[string]Checker{c.LivePath: live, c.ReadyPath: ready}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		check, ok := probes[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		answer(w, check(r.Context()))
	})
	return &Listener{
		name:    "health",
		handler: getOnly(handler),
		log:     log,
	}, nil
}

func answer(w http.ResponseWriter, problem error) {
	body := struct {
		Status string `json:"status"`
		Reason string `json:"reason,omitempty"`
	}{Status: "ok"}
	code := http.StatusOK
	if problem != nil {
		body.Status, body.Reason = "failing", problem.Error()
		code = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	// An error here is a client that has gone.
	_ = json.NewEncoder(w).Encode(body)
}
