package adminapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Info is what the agent knows of itself.
type Info struct {
	// Chain is the agent's own SVID, leaf first, up to the authority it was
	// verified with; empty before the agent has attested.
	Chain []*x509.Certificate
	// Uptime is for how long the agent has been running.
	Uptime time.Duration
	// LastSync is when what the agent holds was last known to be what the
	// server has; zero: not in this run.
	LastSync time.Time
	// X509SVIDs and JWTSVIDs are how many are held for workloads.
	X509SVIDs, JWTSVIDs int
}

// Config of a Service. All of it is required.
type Config struct {
	// Info is asked at each call; it returns quickly.
	Info func() Info
	// Budget is asked at each call for the outage budget; it returns quickly.
	Budget func() *operatorv1.OutageBudgetResponse
	// Log is the log whose level is shown and set.
	Log *telemetry.Log
	// Logger is written to; it is usually Log's.
	Logger *slog.Logger
}

const (
	// maxMessage bounds a request in bytes; they have next to nothing in them.
	maxMessage = 64 << 10
	// maxStreams bounds the calls under way on one connection.
	maxStreams = 16
	// connectTimeout bounds the HTTP/2 preface of a connection.
	connectTimeout = 10 * time.Second
)

// Service answers the calls of the admin socket. It is safe for concurrent use.
type Service struct{ cfg Config }

// New returns a Service; it starts nothing.
func New(cfg Config) (*Service, error) {
	if cfg.Info == nil || cfg.Budget == nil || cfg.Log == nil || cfg.Logger == nil {
		return nil, errors.New("admin API: Info, Budget, Log and Logger are required")
	}
	return &Service{cfg: cfg}, nil
}

// Serve answers on the listener until ctx ends; then it ends all calls and
// returns nil. It closes the listener.
func (s *Service) Serve(ctx context.Context, lis net.Listener) error {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(connectTimeout),
	)
	debugv1.RegisterDebugServer(server, debug{s: s})
	loggerv1.RegisterLoggerServer(server, logger{s: s})
	operatorv1.RegisterAgentOperatorServer(server, operator{s: s})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return nil
	})
	g.Go(func() error {
		err := server.Serve(lis)
		if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
			return nil
		}
		return fmt.Errorf("serving the admin API: %w", err)
	})
	return g.Wait()
}

type debug struct {
	debugv1.UnimplementedDebugServer
	s *Service
}

// GetInfo says what the agent is and holds.
func (d debug) GetInfo(context.Context, *debugv1.GetInfoRequest) (*debugv1.GetInfoResponse, error) {
	info := d.s.cfg.Info()
	resp := &debugv1.GetInfoResponse{
		Uptime:               count(int(info.Uptime / time.Second)),
		SvidsCount:           count(info.X509SVIDs), //nolint:staticcheck // deprecated in favor of the next; SPIRE's agent fills it in too
		CachedX509SvidsCount: count(info.X509SVIDs),
		CachedJwtSvidsCount:  count(info.JWTSVIDs),
	}
	if !info.LastSync.IsZero() {
		resp.LastSyncSuccess = info.LastSync.Unix()
	}
	for _, c := range info.Chain {
		resp.SvidChain = append(resp.SvidChain, &debugv1.GetInfoResponse_Cert{
			Id: spiffeID(c), ExpiresAt: c.NotAfter.Unix(), Subject: c.Subject.String(),
		})
	}
	return resp, nil
}

// spiffeID is that of the certificate, or nil.
func spiffeID(c *x509.Certificate) *types.SPIFFEID {
	id, err := x509svid.IDFromCert(c)
	if err != nil {
		return nil
	}
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// count is n as the API has room for it.
func count(n int) int32 {
	return int32(max(0, min(n, math.MaxInt32)))
}

type logger struct {
	loggerv1.UnimplementedLoggerServer
	s *Service
}

// GetLogger says what is logged.
func (l logger) GetLogger(context.Context, *loggerv1.GetLoggerRequest) (*types.Logger, error) {
	return l.s.cfg.Log.APILogger(), nil
}

// SetLogLevel changes what is logged until ResetLogLevel or a restart.
func (l logger) SetLogLevel(ctx context.Context, req *loggerv1.SetLogLevelRequest) (*types.Logger, error) {
	if req.GetNewLevel() == types.LogLevel_UNSPECIFIED {
		return nil, status.Error(codes.InvalidArgument, "newLevel value cannot be LogLevel_UNSPECIFIED")
	}
	level, ok := telemetry.FromAPILevel(req.GetNewLevel())
	if !ok {
		return nil, status.Error(codes.InvalidArgument, "unsupported log level")
	}
	return l.set(ctx, level), nil
}

// ResetLogLevel goes back to what the configuration asked for.
func (l logger) ResetLogLevel(ctx context.Context, _ *loggerv1.ResetLogLevelRequest) (*types.Logger, error) {
	return l.set(ctx, l.s.cfg.Log.LaunchLevel()), nil
}

// set reports the change at whichever of the two levels shows it.
func (l logger) set(ctx context.Context, level slog.Level) *types.Logger {
	c := l.s.cfg
	old := c.Log.Level()
	c.Log.SetLevel(min(old, level))
	c.Logger.InfoContext(ctx, "log level changed over the admin socket", telemetry.Level, level.String())
	c.Log.SetLevel(level)
	return c.Log.APILogger()
}

type operator struct {
	operatorv1.UnimplementedAgentOperatorServer
	s *Service
}

// OutageBudget says for how long the agent could go on without a server.
func (o operator) OutageBudget(context.Context, *operatorv1.OutageBudgetRequest) (*operatorv1.OutageBudgetResponse, error) {
	return o.s.cfg.Budget(), nil
}
