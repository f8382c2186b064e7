package workloadapi_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/attestor"
	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/agent/peer"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/credence-id/credence/pkg/attest"
	workloadattest "github.com/credence-id/credence/pkg/attest/workload"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/testing/protocmp"
)

// world is a Workload API over bufconn, whose callers are this process.
type world struct {
	t        testing.TB
	server   *cachetest.Server
	cache    *cache.Cache
	attestor *says
	log      *lines
	runner   *attestor.Runner
	registry *prometheus.Registry
	conn     *grpc.ClientConn
	client   workload.SpiffeWorkloadAPIClient
	dial     func(context.Context, string) (net.Conn, error)
}

// says is an attestor that says what a test wants.
type says struct {
	mu          sync.Mutex
	selectors   attest.Selectors
	err         error
	invalidated chan struct{}
}

func (*says) Name() string { return "test" }

func (a *says) Attest(context.Context, workloadattest.Process) (attest.Selectors, <-chan struct{}, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.selectors, a.invalidated, a.err
}

// set changes the answer, and tells that the last one does not hold any more.
func (a *says) set(err error, values ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.selectors, a.err = sel(values...), err
	if a.invalidated != nil {
		close(a.invalidated)
	}
	a.invalidated = make(chan struct{})
}

func sel(values ...string) attest.Selectors {
	var out []attest.Selector
	for _, v := range values {
		out = append(out, attest.Selector{Type: "test", Value: v})
	}
	return attest.NewSelectors(out...)
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// thisProcess takes the test for the caller.
func thisProcess(net.Conn) (*peer.Process, error) { return peer.Open(int32(os.Getpid())) }

type option struct {
	config   func(*workloadapi.Config)
	listener net.Listener // a real one
	quiet    bool         // logs Info and above
	limits   peer.Limits
}

// newWorld returns a Workload API whose only caller has the selector a, in sync
// with a server without entries.
func newWorld(t testing.TB, opts ...option) *world {
	t.Helper()
	w := &world{t: t, server: cachetest.New(t, "example.org"), attestor: &says{}, log: &lines{}, registry: prometheus.NewRegistry()}
	w.attestor.set(nil, "a")
	level := slog.LevelDebug
	for _, o := range opts {
		if o.quiet {
			level = slog.LevelInfo
		}
	}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: level}))
	var err error
	if w.cache, err = cache.New(cache.Config{TrustDomain: w.server.TrustDomain, Minter: w.server, Log: log, Metrics: w.registry}); err != nil {
		t.Fatal(err)
	}
	runner, err := attestor.New(attestor.Config{Attestors: []workloadattest.Attestor{w.attestor}, Log: log, Metrics: w.registry})
	if err != nil {
		t.Fatal(err)
	}
	w.runner = runner
	cfg := workloadapi.Config{TrustDomain: w.server.TrustDomain, Cache: w.cache, Attestor: runner, Log: log, Metrics: w.registry}
	var lis net.Listener
	var limits peer.Limits
	for _, o := range opts {
		if o.limits != (peer.Limits{}) {
			limits = o.limits
		}
		if o.config != nil {
			o.config(&cfg)
		}
		if o.listener != nil {
			lis = o.listener
		}
	}
	creds := peer.NewCredentials(peer.Config{Log: log, Limits: limits})
	if lis == nil {
		buf := bufconn.Listen(64 << 10)
		lis, w.dial = buf, func(ctx context.Context, _ string) (net.Conn, error) { return buf.DialContext(ctx) }
		creds = peer.NewCredentials(peer.Config{Log: log, Limits: limits, Prober: thisProcess})
	} else {
		addr := lis.Addr()
		w.dial = func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, addr.Network(), addr.String())
		}
	}
	api, err := workloadapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{
		"cache": w.cache.Run,
		"creds": creds.Run,
		"api":   func(ctx context.Context) error { return api.Serve(ctx, lis, creds) },
	} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	w.conn, w.client = w.connect()
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return w
}

func (w *world) connect() (*grpc.ClientConn, workload.SpiffeWorkloadAPIClient) {
	w.t.Helper()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithContextDialer(w.dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn, workload.NewSpiffeWorkloadAPIClient(conn)
}

// sync makes the cache hold what the server has.
func (w *world) sync() {
	w.t.Helper()
	w.server.Sync(w.cache)
}

// ctx has the header that the Workload API demands, and a deadline.
func (w *world) ctx() context.Context {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	w.t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// cancellable is ctx, with its end.
func (w *world) cancellable() (context.Context, context.CancelFunc) {
	w.t.Helper()
	return context.WithCancel(w.ctx())
}

func (w *world) x509() grpc.ServerStreamingClient[workload.X509SVIDResponse] {
	w.t.Helper()
	s, err := w.client.FetchX509SVID(w.ctx(), &workload.X509SVIDRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func recv[T any](t testing.TB, s grpc.ServerStreamingClient[T]) *T {
	t.Helper()
	m, err := s.Recv()
	if err != nil {
		t.Fatalf("Recv: %v", err)
	}
	return m
}

func wantStatus(t testing.TB, err error, code codes.Code, message string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || message != "" && s.Message() != message {
		t.Errorf("got %v %q, want %v %q", s.Code(), s.Message(), code, message)
	}
}

func paths(r *workload.X509SVIDResponse) []string {
	var out []string
	for _, s := range r.GetSvids() {
		out = append(out, s.GetSpiffeId())
	}
	return out
}

var protoEqual = protocmp.Transform()
