package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"path/filepath"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	pluginv1 "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// DefaultDriver is the name that pods use in the SPIFFE world.
const DefaultDriver = "csi.spiffe.io"

// Config of a Service.
type Config struct {
	// Driver is what pods name in spec.volumes[].csi.driver; default
	// DefaultDriver.
	Driver string
	// NodeID names this node to Kubernetes; required.
	NodeID string
	// Version is this program's; kubelet does not look at it.
	Version string
	// Source is the directory that pods are given, which has the Workload API's
	// socket; required, absolute.
	Source string
	// KubeletDir is kubelet's --root-dir, as kubelet and this process both see
	// it; required, absolute.
	KubeletDir string
	// Endpoint is where kubelet finds the socket that the service answers on,
	// for the registration.
	Endpoint string
	// Log defaults to nowhere.
	Log *slog.Logger
	// Metrics is where the service registers its metrics; nil: nowhere.
	Metrics prometheus.Registerer
}

const (
	// maxMessage bounds a request in bytes: a path, and 4 KiB of context at most.
	maxMessage = 64 << 10
	// maxHeaders bounds the headers of a request in bytes.
	maxHeaders = 16 << 10
	// maxStreams bounds the calls under way on one connection.
	maxStreams = 64
	// maxConnections bounds the connections to each of the two sockets; kubelet
	// opens one for each call.
	maxConnections = 256
	// connectionGrace is how long a connection is left in peace when others want
	// its place.
	connectionGrace = 5 * time.Second
	// connectTimeout bounds the HTTP/2 preface of a connection.
	connectTimeout = 10 * time.Second
	// callTimeout bounds how long a call waits for its turn.
	callTimeout = time.Minute
)

// Service answers kubelet. It is safe for concurrent use.
type Service struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	mounts  *mounts
	turns   *turns
}

// New returns a Service; it starts nothing and mounts nothing. It fails on
// systems other than Linux.
func New(cfg Config) (*Service, error) {
	cfg.Driver = cmp.Or(cfg.Driver, DefaultDriver)
	switch {
	case cfg.NodeID == "":
		return nil, errors.New("CSI: NodeID is required")
	case !filepath.IsAbs(cfg.Source) || !filepath.IsAbs(cfg.KubeletDir):
		return nil, errors.New("CSI: Source and KubeletDir must be absolute paths")
	}
	cfg.KubeletDir = filepath.Clean(cfg.KubeletDir)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m, err := newMounts(cfg.Source, cfg.KubeletDir, cfg.Driver)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, log: cfg.Log, metrics: newMetrics(), mounts: m, turns: newTurns()}
	if err := s.metrics.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("registering the CSI service's metrics: %w", err)
	}
	return s, nil
}

// Run adopts what an earlier run has mounted, then answers CSI on lis and, if
// registration is not nil, kubelet's plugin registration on that, until ctx ends;
// then it waits for the calls under way and returns nil. It closes both
// listeners. What is mounted stays: pods go on to use it.
func (s *Service) Run(ctx context.Context, lis, registration net.Listener) error {
	for _, problem := range s.mounts.problems() {
		s.log.WarnContext(ctx, "pods may not get the Workload API", telemetry.Err, problem)
	}
	s.Adopt(ctx)
	g, ctx := errgroup.WithContext(ctx)
	server := s.newServer()
	spec.RegisterIdentityServer(server, identity{s: s})
	spec.RegisterNodeServer(server, node{s: s})
	g.Go(func() error { return serve(ctx, server, lis) })
	if registration != nil {
		server := s.newServer()
		pluginv1.RegisterRegistrationServer(server, registrar{s: s})
		g.Go(func() error { return serve(ctx, server, registration) })
	}
	return g.Wait()
}

func (s *Service) newServer() *grpc.Server {
	return grpc.NewServer(
		grpc.UnaryInterceptor(s.unary),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.WaitForHandlers(true),
	)
}

func serve(ctx context.Context, server *grpc.Server, lis net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return nil
	})
	g.Go(func() error {
		err := server.Serve(connlimit.Listen(lis, maxConnections, connectionGrace))
		if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
			return nil
		}
		return fmt.Errorf("serving %s: %w", lis.Addr(), err)
	})
	return g.Wait()
}

// unary bounds every call, counts it, and gives its error the code that CSI has
// for it.
func (s *Service) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := next(ctx, req)
	err = asStatus(err)
	s.metrics.call(path.Base(info.FullMethod), err)
	if err != nil {
		s.log.InfoContext(ctx, "a call of kubelet was refused", telemetry.Method, path.Base(info.FullMethod), telemetry.Err, err)
		return nil, err
	}
	return resp, nil
}

// Adopt looks at every mount that the driver has below kubelet's directory of
// pods, and makes those right that are not: of mounts on top of each other one
// stays, and one of a directory that was removed since is replaced by one of the
// directory that is there now. What fails is logged.
func (s *Service) Adopt(ctx context.Context) {
	targets, err := s.mounts.found()
	if err != nil {
		s.log.ErrorContext(ctx, "the mounts of an earlier run cannot be found", telemetry.Err, err)
		return
	}
	count := make(map[outcome]int)
	for _, t := range targets {
		what, err := s.adopt(ctx, t)
		if err != nil {
			s.log.ErrorContext(ctx, "a mount of an earlier run cannot be made right", telemetry.TargetPath, t.path, telemetry.Err, err)
		}
		if what == replaced {
			s.log.WarnContext(ctx, "a pod had a directory that is gone; its containers have the new one once they are restarted", telemetry.TargetPath, t.path)
		}
		count[what]++
		s.metrics.adopted.WithLabelValues(string(what)).Inc()
	}
	for what, n := range count {
		s.log.InfoContext(ctx, "looked at mounts in pods", telemetry.Outcome, what, telemetry.Count, n)
	}
}

func (s *Service) adopt(ctx context.Context, t target) (outcome, error) {
	release, err := s.turns.take(ctx, t.path)
	if err != nil {
		return failed, err
	}
	defer release()
	what, err := s.mounts.adopt(t)
	if err != nil {
		return failed, err
	}
	s.metrics.has(t.path, what == kept || what == collapsed || what == replaced)
	return what, nil
}
