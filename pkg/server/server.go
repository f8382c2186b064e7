package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/server/loggerapi"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

// stopGrace is how long calls in flight may go on after the server was told to
// stop.
const stopGrace = 5 * time.Second

// Server is a control plane that is configured and not running.
type Server struct {
	cfg      Config
	settings Settings
	choice   choice

	// assembled, if set, is shown the parts before they run (tests).
	assembled func(*control)
}

// New checks the configuration and returns a server. It opens, starts and
// leaves behind nothing. The error has every problem, one a line.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg.withDefaults(), settings: cfg.Server.withDefaults()}
	var err error
	if s.choice, err = cfg.choose(); err != nil {
		return nil, err
	}
	if cfg.Store != nil {
		s.choice.store = func(context.Context, storeEnv) (store.Store, error) { return lent{cfg.Store}, nil }
	}
	return s, nil
}

// lent is a store that somebody else closes.
type lent struct{ store.Store }

func (lent) Close() error { return nil }

// Run opens the store, makes or loads the authority and serves until ctx ends;
// then it lets agents go to other servers and calls in flight finish, and
// returns nil. What keeps it from
// starting, such as a busy port, is returned as one line with the file's key. A
// Server is run once.
func (s *Server) Run(ctx context.Context) (err error) {
	logger, own := s.cfg.Logger, s.cfg.Log
	var file *telemetry.Log
	if logger == nil && own != nil {
		logger = own.Logger()
	}
	if logger == nil {
		if file, err = telemetry.NewLog(s.settings.logConfig()); err != nil {
			return fmt.Errorf("server.%w", err)
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		own, logger = file, file.Logger()
	}
	for _, n := range s.notices() {
		logger.WarnContext(ctx, "configuration key has no effect", telemetry.Key, n.Key, telemetry.Reason, n.Reason)
	}
	ls, err := s.cfg.listen(ctx, s.settings)
	if err != nil {
		return err
	}
	k, err := assemble(ctx, s.settings, s.choice, logger)
	if err != nil {
		return errors.Join(err, ls.closeAll())
	}
	k.listeners, k.logger = ls, loggerapi.New(own)
	defer func() { err = errors.Join(err, k.close()) }()
	if s.assembled != nil {
		s.assembled(k)
	}
	return s.serve(ctx, k, file)
}

// notices are the keys that are set and have no effect.
func (s *Server) notices() []config.Notice {
	notices, _ := s.cfg.unsupported() // New has seen to those that are refused.
	return append(notices, s.choice.notices...)
}

// serve runs the parts until ctx ends or one of them fails.
func (s *Server) serve(ctx context.Context, k *control, file *telemetry.Log) error {
	sides, err := s.sideListeners(k)
	if err != nil {
		return err
	}
	// What calls in flight depend on outlives ctx until they have ended.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, parts := errgroup.WithContext(parts)
	run := func(name string, part func(context.Context) error) {
		g.Go(func() error {
			err := part(parts)
			if err == nil || parts.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s: %w", name, err)
		})
	}
	run("following the store", k.follow)
	run("store", k.fresh.Run)
	run("server's ID", func(ctx context.Context) error { return k.presence.Run(ctx, k.fresh.wait) })
	run("authority", k.authority.Run)
	if k.kept != nil {
		run("copy of the journal", k.kept.Run)
	}
	run("pruning", k.prune)
	run("pruning of agents", k.pruneAgents)
	run("watching nodes", k.watchNodes)
	run("publishing the bundle", k.publisher.Run)
	run("server's own X509-SVID", k.svid.Run)
	run("audit of refusals", k.chain.gate.refusals.Run)
	if file != nil {
		run("log", file.Run)
	}
	for _, side := range sides {
		run("side listener", side)
	}
	keeping, removed := context.WithCancel(parts)
	defer removed()
	overTLS, admin := k.servers()
	run("TLS listener", func(context.Context) error { return serveOn(overTLS, k.door.listener(k.listeners.tcp)) })
	run("admin socket", func(context.Context) error { return serveOn(admin, k.listeners.admin) })
	if lasting := k.listeners.lasting; lasting != nil {
		// Cleaners of temporary directories, where SPIRE has it, remove it.
		// At the end gRPC removes it itself.
		run("admin socket's path", func(context.Context) error { return lasting.Keep(keeping, k.log, nil) })
	}

	bound := Bound{Address: k.listeners.tcp.Addr(), Admin: k.listeners.admin.Addr()}
	k.log.InfoContext(ctx, "server is listening", telemetry.Address, bound.Address.String(), telemetry.Path, bound.Admin.String())
	if s.cfg.OnReady != nil {
		s.cfg.OnReady(bound)
	}
	select {
	case <-ctx.Done():
		k.log.InfoContext(ctx, "server is stopping")
	case <-parts.Done():
	}
	k.state.stopping.Store(true)
	k.health.Stop()
	k.drain(parts)
	k.hub.Stop()
	removed()
	stopServers(k.door, stopGrace, overTLS, admin)
	k.attest.Wait()
	k.chain.ending.Wait()
	stop()
	return g.Wait()
}

// sideListeners serve health checks, metrics and profiles.
func (s *Server) sideListeners(k *control) ([]func(context.Context) error, error) {
	var out []func(context.Context) error
	if s.cfg.HealthChecks.ListenerEnabled {
		l, err := telemetry.NewHealth(s.cfg.HealthChecks, k.live, k.ready, k.log)
		if err != nil {
			return nil, err
		}
		out = append(out, func(ctx context.Context) error { return l.Serve(ctx, k.listeners.health) })
	}
	if p := s.cfg.Telemetry.Prometheus; p != nil {
		l, err := telemetry.NewPrometheus(*p, k.metrics, k.log)
		if err != nil {
			return nil, err
		}
		out = append(out, func(ctx context.Context) error { return l.Serve(ctx, k.listeners.metrics) })
	}
	if k.listeners.profiling != nil {
		l := s.settings.Profiling.NewListener(k.log)
		out = append(out, func(ctx context.Context) error { return l.Serve(ctx, k.listeners.profiling) })
	}
	return out, nil
}
