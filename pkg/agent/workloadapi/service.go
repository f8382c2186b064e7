package workloadapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/credence-id/credence/pkg/agent/attestor"
	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/peer"
	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// Config of a Service. Cache, Attestor and TrustDomain are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Cache       *cache.Cache
	Attestor    *attestor.Runner
	// AllowUnauthenticatedVerifiers gives our own bundle to workloads that have
	// no identity; default false.
	AllowUnauthenticatedVerifiers bool
	// AllowedForeignJWTClaims are the claims that ValidateJWTSVID reports of
	// tokens from other trust domains, beside sub, aud and exp; default none.
	AllowedForeignJWTClaims []string
	// MaxStreams bounds the RPCs under way on one connection; default 250.
	MaxStreams uint32
	// Rates bound how often one set of selectors may call.
	Rates Rates
	// Log defaults to nowhere.
	Log *slog.Logger
	// Metrics is where the service registers its metrics; nil: nowhere.
	Metrics prometheus.Registerer
}

const (
	defaultMaxStreams = 250
	// maxMessage bounds a request in bytes: the longest is a list of audiences.
	maxMessage = 256 << 10
	// maxHeaders bounds the headers of a request in bytes.
	maxHeaders = 16 << 10
	// readBuffer of a connection in bytes, of which there can be thousands;
	// requests are small.
	readBuffer = 2 << 10
	// connectTimeout bounds the HTTP/2 preface of a connection.
	connectTimeout = 10 * time.Second
	// minPing is how often a client may ping.
	minPing = 5 * time.Second
)

// serviceName is the Workload API's, as in its proto.
const serviceName = "SpiffeWorkloadAPI"

// Service is the Workload API. The profiles it does not serve are those of the
// embedded type.
type Service struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	cfg     Config
	log     *slog.Logger
	metrics *metrics
	foreign map[string]bool // claims reported of foreign tokens
	rates   rates
	tokens  tokens
}

// New returns a Service; it starts nothing.
func New(cfg Config) (*Service, error) {
	if cfg.Cache == nil || cfg.Attestor == nil || cfg.TrustDomain.IsZero() {
		return nil, errors.New("workload API: Cache, Attestor and TrustDomain are required")
	}
	cfg.MaxStreams = cmp.Or(cfg.MaxStreams, defaultMaxStreams)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		cfg: cfg, log: cfg.Log, metrics: newMetrics(), rates: newRates(cfg.Rates),
		foreign: map[string]bool{"sub": true, "aud": true, "exp": true},
	}
	for _, claim := range cfg.AllowedForeignJWTClaims {
		s.foreign[claim] = true
	}
	if err := s.metrics.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("registering the Workload API's metrics: %w", err)
	}
	return s, nil
}

// Serve answers on the listener, whose connections creds proves the callers of,
// until ctx ends; then it ends all RPCs and returns nil. It closes the listener.
// The Run of creds is the caller's to keep running.
func (s *Service) Serve(ctx context.Context, lis net.Listener, creds *peer.Credentials) error {
	server := grpc.NewServer(
		grpc.Creds(creds),
		grpc.UnaryInterceptor(creds.Unary),
		grpc.StreamInterceptor(creds.Stream),
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxConcurrentStreams(s.cfg.MaxStreams),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.ReadBufferSize(readBuffer),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	)
	workload.RegisterSpiffeWorkloadAPIServer(server, s)
	h := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, h)
	reflection.Register(server)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.reportHealth(ctx, h) })
	g.Go(func() error {
		<-ctx.Done()
		h.Shutdown()
		server.Stop()
		return nil
	})
	g.Go(func() error {
		err := server.Serve(creds.Listener(lis))
		if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
			return nil
		}
		return fmt.Errorf("serving the Workload API: %w", err)
	})
	err := g.Wait()
	s.cfg.Attestor.Wait()
	return err
}

// reportHealth answers SERVING once the cache has been in sync with the server;
// it goes on serving when the server is away.
func (s *Service) reportHealth(ctx context.Context, h *health.Server) error {
	for {
		ready, changed := s.cfg.Cache.Ready()
		state := grpc_health_v1.HealthCheckResponse_NOT_SERVING
		if ready {
			state = grpc_health_v1.HealthCheckResponse_SERVING
		}
		h.SetServingStatus("", state)
		h.SetServingStatus(serviceName, state)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// identify refuses requests that do not come from a Workload API client
// (Workload Endpoint, 3), and says who the caller is.
func (s *Service) identify(ctx context.Context) (*peer.Process, error) {
	if v := metadata.ValueFromIncomingContext(ctx, "workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return nil, status.Error(codes.InvalidArgument, "security header missing from request")
	}
	proc, err := peer.FromContext(ctx)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return proc, nil
}

// attest returns the selectors of the caller, and when to ask again.
func (s *Service) attest(ctx context.Context, proc *peer.Process) (attest.Selectors, <-chan struct{}, error) {
	selectors, invalidated, err := s.cfg.Attestor.Attest(ctx, proc)
	if err != nil {
		return nil, nil, status.FromContextError(err).Err()
	}
	if err := s.check(ctx, proc); err != nil {
		return nil, nil, err
	}
	return selectors, invalidated, nil
}

// check refuses a process that is not the one that connected any more.
func (s *Service) check(ctx context.Context, proc *peer.Process) error {
	err := proc.Check()
	if err == nil {
		return nil
	}
	if !errors.Is(err, peer.ErrGone) {
		s.log.WarnContext(ctx, "a process has changed since it connected", telemetry.PeerPID, proc.PID(), telemetry.PeerUID, proc.UID(), telemetry.Err, err)
	}
	return status.Error(codes.Unavailable, "workload attestation failed: "+err.Error())
}

// refusal turns an error of the cache into the status that workloads expect.
func (s *Service) refusal(ctx context.Context, method string, proc *peer.Process, err error) error {
	switch {
	case errors.Is(err, cache.ErrNoIdentity):
		s.log.InfoContext(ctx, "no identity issued", telemetry.Method, method, telemetry.PeerPID, proc.PID(), telemetry.PeerUID, proc.UID())
		return status.Error(codes.PermissionDenied, cache.ErrNoIdentity.Error())
	case errors.Is(err, cache.ErrUnavailable):
		s.log.WarnContext(ctx, "a workload could not be served", telemetry.Method, method, telemetry.PeerPID, proc.PID(), telemetry.PeerUID, proc.UID(), telemetry.Err, err)
		return status.Error(codes.Unavailable, err.Error())
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	}
	return status.Error(codes.Internal, err.Error())
}
