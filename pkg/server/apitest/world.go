package apitest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/keys/memkey"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/credence-id/credence/pkg/server/agentapi"
	"github.com/credence-id/credence/pkg/server/feedapi"
	"github.com/credence-id/credence/pkg/server/svidapi"
)

// Options of a World. The zero value is good.
type Options struct {
	// Wrap is put around the store, to make it fail.
	Wrap func(store.Store) store.Store
	// Verifiers are the node attestation methods.
	Verifiers map[string]node.Verifier
	// AttestTimeout and CatchUp are agentapi's and feedapi's.
	AttestTimeout, CatchUp time.Duration
	// AgentTTL is the authority's.
	AgentTTL time.Duration
	// DisableJWT switches JWT-SVIDs off.
	DisableJWT bool
	// Log receives the server's log and audit records; none by default.
	Log slog.Handler
	// Hold, if set, is called by the follower before each commit is applied.
	Hold func(*registry.Commit)
}

// World is one server in memory.
type World struct {
	TrustDomain spiffeid.TrustDomain
	Store       store.Store
	Registry    *registry.Registry
	Index       *registry.Index
	Graph       *entitle.Graph
	Authority   *ca.Authority
	Agents      *agentapi.Authenticator
	Hub         *feedapi.Hub

	tls   *bufconn.Listener
	local *bufconn.Listener
}

// New starts a World, which ends with the test.
func New(tb testing.TB, o Options) *World {
	tb.Helper()
	ctx := tb.Context()
	w := &World{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")}
	engine, err := bolt.Open(bolt.Config{Path: filepath.Join(tb.TempDir(), "store.db")})
	must(tb, err)
	tb.Cleanup(func() { must(tb, engine.Close()) })
	w.Store = engine
	if o.Wrap != nil {
		w.Store = o.Wrap(engine)
	}
	log := slog.New(slog.DiscardHandler)
	var records *audit.Log
	if o.Log != nil {
		log = slog.New(o.Log)
		records = audit.New(log)
	}

	w.Registry, err = registry.New(ctx, registry.Config{Store: w.Store, TrustDomain: w.TrustDomain})
	must(tb, err)
	w.Index = registry.NewIndex()
	w.Graph = entitle.New(w.TrustDomain)
	w.Authority, err = ca.New(ca.Config{
		TrustDomain: w.TrustDomain, ServerID: "0123", Registry: w.Registry, Keys: memkey.New(), AgentTTL: o.AgentTTL,
		DisableJWT: o.DisableJWT,
	})
	must(tb, err)
	must(tb, w.Authority.Start(ctx))
	w.Agents = agentapi.NewAuthenticator(w.Index, w.Registry, w.fresh)
	agents := agentapi.New(agentapi.Config{
		TrustDomain: w.TrustDomain, Registry: w.Registry, Index: w.Index, Issuer: w.Authority,
		Verifiers: o.Verifiers, Fresh: w.fresh, AttestTimeout: o.AttestTimeout, Logger: log, Audit: records,
	})
	svids := svidapi.New(svidapi.Config{
		TrustDomain: w.TrustDomain, Graph: w.Graph, Fresh: w.fresh, Issuer: w.Authority, DisableJWT: o.DisableJWT,
		Logger: log, Audit: records,
	})
	w.Hub, err = feedapi.New(feedapi.Config{
		TrustDomain: w.TrustDomain, Graph: w.Graph, Index: w.Index, Head: w.Store.Head,
		SetVersion: agents.SetVersion, CatchUp: o.CatchUp, Logger: log, Audit: records,
	})
	must(tb, err)
	w.follow(tb, o.Hold)
	w.serve(tb, log, agents, svids)
	return w
}

func (w *World) fresh(ctx context.Context) error {
	head, err := w.Store.Head(ctx)
	if err != nil {
		return err
	}
	return w.Index.WaitFor(ctx, head)
}

// follow brings commits to the rooms, in the server's order.
func (w *World) follow(tb testing.TB, hold func(*registry.Commit)) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		err := w.Registry.Follow(ctx, func(c *registry.Commit) error {
			if hold != nil {
				hold(c)
			}
			touched := w.Graph.Apply(c)
			w.Agents.Apply(c)
			for _, b := range c.Bundles {
				if b.TrustDomain == w.TrustDomain {
					w.Authority.ObserveBundle(b.Now)
				}
			}
			w.Index.Apply(c)
			w.Hub.Publish(c, touched)
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			tb.Errorf("following the store: %v", err)
		}
	})
	tb.Cleanup(func() {
		cancel()
		running.Wait()
	})
	must(tb, w.Index.WaitFor(tb.Context(), 0))
}

func (w *World) serve(tb testing.TB, log *slog.Logger, agents *agentapi.Service, svids *svidapi.Service) {
	w.tls, w.local = bufconn.Listen(1<<18), bufconn.Listen(1<<18)
	g := &gate{world: w, log: log}
	var running sync.WaitGroup
	var servers []*grpc.Server
	for _, l := range []struct {
		at   net.Listener
		opts []grpc.ServerOption
	}{
		{w.tls, []grpc.ServerOption{grpc.Creds(w.serverCredentials(tb))}},
		{w.local, nil},
	} {
		s := grpc.NewServer(append(l.opts, grpc.UnaryInterceptor(g.unary), grpc.StreamInterceptor(g.stream))...)
		agentv1.RegisterAgentServer(s, agents)
		svidv1.RegisterSVIDServer(s, svids)
		feedv1.RegisterFeedServer(s, w.Hub)
		running.Go(func() {
			if err := s.Serve(l.at); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				tb.Errorf("serving: %v", err)
			}
		})
		servers = append(servers, s)
	}
	tb.Cleanup(func() {
		w.Hub.Stop()
		for _, s := range servers {
			s.Stop()
		}
		running.Wait()
		agents.Wait()
	})
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
