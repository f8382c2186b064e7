package healthapi

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Service is grpc.health.v1 of the server as a whole, which clients ask for by
// the empty name, and of parts of it that have names. It is safe for concurrent
// use.
type Service struct {
	healthv1.UnimplementedHealthServer
	checks map[string]telemetry.Checker // by name

	stopped chan struct{}
	stop    sync.Once

	mu      sync.Mutex
	changed chan struct{} // closed and replaced by Changed; guarded by mu
}

// New returns a service that serves while check returns nil.
func New(check telemetry.Checker) *Service {
	return &Service{checks: map[string]telemetry.Checker{"": check}, changed: make(chan struct{}), stopped: make(chan struct{})}
}

// Part adds a part of the server with a check of its own, before the service is
// used.
func (s *Service) Part(name string, check telemetry.Checker) { s.checks[name] = check }

// Stop ends every watch; from now on the server does not serve.
func (s *Service) Stop() { s.stop.Do(func() { close(s.stopped) }) }

// Changed makes every watcher look again.
func (s *Service) Changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Check answers for the empty service name and those of parts; others are
// NotFound.
func (s *Service) Check(ctx context.Context, req *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	check, ok := s.checks[req.GetService()]
	if !ok {
		return nil, rpcerr.New(codes.NotFound, "unknown service: ask for the empty name, which is the server")
	}
	return &healthv1.HealthCheckResponse{Status: s.now(ctx, check)}, nil
}

// List answers for the server and its parts.
func (s *Service) List(ctx context.Context, _ *healthv1.HealthListRequest) (*healthv1.HealthListResponse, error) {
	all := make(map[string]*healthv1.HealthCheckResponse, len(s.checks))
	for name, check := range s.checks {
		all[name] = &healthv1.HealthCheckResponse{Status: s.now(ctx, check)}
	}
	return &healthv1.HealthListResponse{Statuses: all}, nil
}

// Watch sends the status, and again when it has changed. A service that is not
// known has the status SERVICE_UNKNOWN, for ever.
func (s *Service) Watch(req *healthv1.HealthCheckRequest, stream healthv1.Health_WatchServer) error {
	ctx := stream.Context()
	last := healthv1.HealthCheckResponse_UNKNOWN
	for {
		changed := s.next()
		now := healthv1.HealthCheckResponse_SERVICE_UNKNOWN
		if check, ok := s.checks[req.GetService()]; ok {
			now = s.now(ctx, check)
		}
		if now != last {
			if err := stream.Send(&healthv1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopped:
			return rpcerr.New(codes.Unavailable, "the server is stopping")
		case <-changed:
		}
	}
}

func (s *Service) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Service) now(ctx context.Context, check telemetry.Checker) healthv1.HealthCheckResponse_ServingStatus {
	select {
	case <-s.stopped:
		return healthv1.HealthCheckResponse_NOT_SERVING
	default:
	}
	if check(ctx) != nil {
		return healthv1.HealthCheckResponse_NOT_SERVING
	}
	return healthv1.HealthCheckResponse_SERVING
}
