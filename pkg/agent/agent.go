package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/agent/adminapi"
	"github.com/credence-id/credence/pkg/agent/attestor"
	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/csi"
	"github.com/credence-id/credence/pkg/agent/feed"
	"github.com/credence-id/credence/pkg/agent/peer"
	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/credence-id/credence/pkg/unixsock"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// Agent is one node agent. Make it with New.
type Agent struct {
	config   *Config
	log      *slog.Logger
	version  string
	serverID spiffeid.ID
	ready    func()
	registry *prometheus.Registry

	cache    *cache.Cache
	trust    *trust
	identity *identity
	state    *state
	prover   node.Prover
	attestor *attestor.Runner
	api      *workloadapi.Service
	admin    *adminapi.Service // nil: not configured
	csi      *csi.Service      // nil: not configured, or in a process of its own
	csiAlone bool              // this is that process
	listener net.Listener
	sockets  []*unixsock.Lasting // set before anything runs

	route     *route.Route
	link      atomic.Pointer[link]
	lostAt    atomic.Pointer[time.Time] // when the last connection in use was lost
	connected atomic.Bool
	caughtUp  atomic.Bool               // in this session
	pushed    atomic.Bool               // the server pushes; else it is polled
	syncedAt  atomic.Pointer[time.Time] // see lastSync
	started   time.Time
	reason    atomic.Pointer[string]
	outage    outage
	readyOnce sync.Once
	asked     asked // of the one goroutine that bootstraps
	// background are goroutines that end soon after what they serve; Run waits
	// for them.
	background sync.WaitGroup
}

// Options are what a caller may set beside the configuration.
type Options struct {
	// Log is required.
	Log *slog.Logger
	// LogLevel is the log whose level the admin API shows and sets; required
	// with agent.admin_socket_path.
	LogLevel *telemetry.Log
	// Version is this program's.
	Version string
	// Ready, when not nil, is called once, when the cache has first caught up
	// with the server.
	Ready func()
	// Listener, when not nil, takes the place of agent.socket_path.
	Listener net.Listener
}

// Run serves until ctx ends, and then returns nil, or until the agent cannot go
// on: the server refuses it for good (ErrBanned, ErrRefused) or a part of its
// own fails. What an earlier run left in data_dir is taken up first, so that
// the Workload API can answer from it while the server is away.
func (a *Agent) Run(ctx context.Context) error {
	defer a.background.Wait()
	unlock, err := lockDataDir(a.file(lockFile))
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.takeUp(ctx); err != nil {
		return err
	}
	listeners, err := a.listen(ctx)
	if err != nil {
		return err
	}
	lis := listeners.api
	group, ctx := errgroup.WithContext(ctx)
	if a.admin != nil {
		group.Go(func() error { return a.admin.Serve(ctx, listeners.admin) })
	}
	if a.csi != nil {
		group.Go(func() error { return a.csi.Run(ctx, listeners.csi, listeners.registration) })
	}
	// Before anything else, so that a busy port does not cost the join token.
	if err := a.runListeners(ctx, group); err != nil {
		group.Go(func() error { return err })
		return errors.Join(group.Wait(), lis.Close())
	}
	a.note(ctx)
	creds := peer.NewCredentials(peer.Config{Log: a.log, Limits: socketLimits(connlimit.OpenFiles()), Refused: a.api.Refused})
	for name, run := range map[string]func(context.Context) error{
		"peers":                creds.Run,
		"cache":                a.cache.Run,
		"state":                func(ctx context.Context) error { return a.state.keep(ctx, a.cache) },
		"workload API":         func(ctx context.Context) error { return a.api.Serve(ctx, lis, creds) },
		"sockets":              a.keepSockets,
		"workload attestors":   a.attestor.Run,
		"following the server": a.follow,
	} {
		group.Go(func() error {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	a.log.InfoContext(ctx, "serving the Workload API", telemetry.Address, lis.Addr().String(), telemetry.TrustDomain, a.config.Agent.TrustDomain)
	err = group.Wait()
	if l := a.link.Swap(nil); l != nil {
		err = errors.Join(err, l.close())
	}
	return err
}

// takeUp reads what an earlier run left.
func (a *Agent) takeUp(ctx context.Context) error {
	if err := a.state.restore(a.cache); err != nil {
		return err
	}
	if b := a.cache.Bundle(a.trust.td); b != nil {
		if err := a.trust.learn(b); err != nil {
			return fmt.Errorf("reading the bundle kept in data_dir: %w", err)
		}
	}
	had, err := a.identity.load(ctx)
	if err != nil {
		return err
	}
	if had {
		s := a.identity.current.Load()
		a.log.InfoContext(ctx, "took up the SVID of an earlier run", telemetry.AgentID, s.ID, telemetry.NotAfter, s.notAfter())
	}
	return nil
}

// runListeners opens and serves the HTTP side listeners that are configured.
func (a *Agent) runListeners(ctx context.Context, group *errgroup.Group) error {
	health, err := a.config.Health.Listen(ctx)
	if err != nil {
		return err
	}
	if health != nil {
		h, err := telemetry.NewHealth(a.config.Health, a.live, a.Healthy, a.log)
		if err != nil {
			return err
		}
		group.Go(func() error { return h.Serve(ctx, health) })
	}
	metrics, err := a.config.Telemetry.ListenMetrics(ctx)
	if err != nil {
		return err
	}
	profiles, err := a.config.Agent.Profiling.Listen(ctx, "agent")
	if err != nil {
		return err
	}
	if profiles != nil {
		l := a.config.Agent.Profiling.NewListener(a.log)
		group.Go(func() error { return l.Serve(ctx, profiles) })
	}
	if metrics != nil {
		l, err := telemetry.NewPrometheus(*a.config.Telemetry.Prometheus, a.registry, a.log)
		if err != nil {
			return err
		}
		group.Go(func() error { return l.Serve(ctx, metrics) })
	}
	return nil
}

// note says which keys of the configuration have no effect.
func (a *Agent) note(ctx context.Context) {
	notices, _ := a.config.unsupported() // New has seen to those that are refused.
	notices = append(notices, a.config.pluginNotices()...)
	for _, n := range notices {
		a.log.WarnContext(ctx, "configuration key has no effect", telemetry.Key, n.Key, telemetry.Reason, n.Reason)
	}
}

func (a *Agent) live(context.Context) error { return nil }

// Healthy says why the agent is not in sync with its server, or cannot be
// reached by workloads, or nil.
func (a *Agent) Healthy(context.Context) error {
	if err := a.checkSockets(); err != nil {
		return err
	}
	if a.connected.Load() {
		return nil
	}
	if r := a.reason.Load(); r != nil {
		return fmt.Errorf("not in sync with the server: %s", *r)
	}
	return errors.New("not in sync with the server yet")
}

// away is told why there is no connection, each time one was tried for.
func (a *Agent) away(ctx context.Context, err error) {
	text := err.Error()
	a.reason.Store(&text)
	a.cache.Away(err)
	a.sayAway(ctx, time.Now())
}

// synced is told each time the cache has caught up.
func (a *Agent) synced(ctx context.Context) {
	a.syncing(time.Now())
	a.caughtUp.Store(true)
	away := a.outage.over(time.Now())
	if !a.connected.Swap(true) {
		a.log.InfoContext(ctx, "in sync with the server", telemetry.Address, a.server(), telemetry.Away, away.Round(time.Millisecond))
	}
	a.readyOnce.Do(func() {
		if a.ready != nil {
			a.ready()
		}
	})
}

// replaceLink makes l the connection in use. The old one is closed once the
// calls on it have ended.
func (a *Agent) replaceLink(ctx context.Context, l *link) {
	if old := a.link.Swap(l); old != nil {
		close(old.replaced)
		a.background.Go(func() { a.closing(ctx, old) })
	}
}

// server is the address of the server in use.
func (a *Agent) server() string {
	if l := a.link.Load(); l != nil {
		return l.conn.Address
	}
	return ""
}

// closing closes a connection whose end changes nothing.
func (a *Agent) closing(ctx context.Context, l *link) {
	if err := l.close(); err != nil {
		a.log.DebugContext(ctx, "closing a connection to the server", telemetry.Err, err)
	}
}

// sink passes the stream on to the cache, and our own bundle to the TLS
// verification.
type sink Agent

var _ feed.Cache = (*sink)(nil)

// Open is feed.Cache.
func (s *sink) Open() *feedv1.Open { return s.cache.Open() }

// Apply is feed.Cache.
func (s *sink) Apply(d *feedv1.Delta) error {
	for _, b := range d.GetBundles() {
		if b.GetBundle().GetTrustDomain() == s.trust.td.Name() {
			if err := s.trust.learn(b.GetBundle()); err != nil {
				return err
			}
		}
	}
	return s.cache.Apply(d)
}

// Synced is feed.Cache.
func (s *sink) Synced(m *feedv1.Synced) error { return s.cache.Synced(m) }

// makeDataDir makes data_dir, or says why it cannot be used.
func makeDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("agent.data_dir: %w; choose a directory this user can write", err)
	}
	probe, err := os.CreateTemp(dir, ".probe")
	if err != nil {
		return fmt.Errorf("agent.data_dir: %w; choose a directory this user can write", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// The agent's files in data_dir, beside its key manager's.
const (
	svidFile  = "agent-svid.json"
	stateFile = "agent-state.pb"
	lockFile  = "lock"
)

func (a *Agent) file(name string) string { return filepath.Join(a.config.Agent.DataDir, name) }
