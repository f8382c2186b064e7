package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	httppprof "net/http/pprof"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
)

// profilingHost: profiles show what is in memory, and nobody is asked who they
// are, so that only this machine may ask.
const profilingHost = "127.0.0.1"

// Profiling has the keys profiling_* of a configuration file.
type Profiling struct {
	// ProfilingEnabled serves Go's profiles over HTTP on 127.0.0.1, at
	// /debug/pprof/.
	ProfilingEnabled bool `hcl:"profiling_enabled"`
	// ProfilingPort is the TCP port; required when profiling is enabled.
	ProfilingPort int `hcl:"profiling_port"`
	// ProfilingNames are the profiles served, such as heap, goroutine, mutex,
	// cpu, trace.
	ProfilingNames []string `hcl:"profiling_names" unset:"all"`
	// ProfilingFreq is how often, in seconds, SPIRE writes profiles to files.
	ProfilingFreq int `hcl:"profiling_freq" accepted:"profiles are made when the listener is asked for them, and not written to files"`
}

// maxProfile bounds, in seconds, one profile of what happens meanwhile: Go's
// handlers prolong their deadline for it.
const maxProfile = 600

// namesOfPprof are the profiles beside those of runtime/pprof.
var namesOfPprof = map[string]http.HandlerFunc{"cpu": httppprof.Profile, "trace": httppprof.Trace}

// Validate reports the problems of the keys, one call of report for each.
func (p Profiling) Validate(report func(key string, err error)) {
	if !p.ProfilingEnabled {
		return
	}
	if p.ProfilingPort < 1 || p.ProfilingPort > 65535 {
		report("profiling_port", fmt.Errorf("%d is not between 1 and 65535", p.ProfilingPort))
	}
	for _, name := range p.ProfilingNames {
		if _, ok := namesOfPprof[name]; !ok && pprof.Lookup(name) == nil {
			report("profiling_names", fmt.Errorf("there is no profile %q: use %s", name, strings.Join(profileNames(), ", ")))
		}
	}
}

func profileNames() []string {
	var names []string
	for name := range namesOfPprof {
		names = append(names, name)
	}
	for _, p := range pprof.Profiles() {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	return names
}

// Endpoint is where the profiles are shown; the zero value if they are not.
// section is where the keys stand.
func (p Profiling) Endpoint(section string) Endpoint {
	if !p.ProfilingEnabled {
		return Endpoint{}
	}
	return Endpoint{profilingHost, strconv.Itoa(p.ProfilingPort), section + ".profiling_port"}
}

// Listen opens the profiles' address, for [Listener.Serve]; nil when they are
// not enabled. section is where the keys stand, for errors.
func (p Profiling) Listen(ctx context.Context, section string) (net.Listener, error) {
	if !p.ProfilingEnabled {
		return nil, nil //nolint:nilnil // as documented
	}
	key := section + ".profiling_port"
	return listen(ctx, profilingHost, strconv.Itoa(p.ProfilingPort), key, key)
}

// NewListener returns the listener that shows the profiles, which are made when
// somebody asks. It knows the process's own secrets: only what is allowed to
// read its memory may reach it.
func (p Profiling) NewListener(log *slog.Logger) *Listener {
	allowed := func(name string) bool { return len(p.ProfilingNames) == 0 || slices.Contains(p.ProfilingNames, name) }
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := strings.CutPrefix(r.URL.Path, "/debug/pprof/")
		name = cmp.Or(map[string]string{"profile": "cpu"}[name], name)
		own := namesOfPprof[name]
		seconds := cmp.Or(r.URL.Query().Get("seconds"), "0")
		switch n, err := strconv.ParseFloat(seconds, 64); {
		case err != nil || !(n >= 0 && n <= maxProfile): // NaN too
			http.Error(w, fmt.Sprintf("seconds: at most %d", maxProfile), http.StatusBadRequest)
		case ok && name == "" && len(p.ProfilingNames) == 0:
			httppprof.Index(w, r)
		case !ok || name == "" || !allowed(name):
			http.NotFound(w, r)
		case own != nil:
			own(w, r)
		case pprof.Lookup(name) != nil:
			httppprof.Handler(name).ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	})
	return &Listener{name: "profiling", handler: getOnly(loopbackOnly(handler)), log: log}
}

// loopbackOnly refuses what a browser sends here for another site's page: a
// name that somebody has pointed at 127.0.0.1.
func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "unknown host", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
