package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

// faulty is a service with faults.
type faulty struct {
	entryv1.UnimplementedEntryServer
	deadline time.Duration
	caller   policy.Caller
}

func (f *faulty) CountEntries(ctx context.Context, _ *entryv1.CountEntriesRequest) (*entryv1.CountEntriesResponse, error) {
	d, _ := ctx.Deadline()
	f.deadline = time.Until(d)
	f.caller, _ = policy.FromContext(ctx)
	return nil, errors.New("canary-internal")
}

func (*faulty) BatchDeleteEntry(context.Context, *entryv1.BatchDeleteEntryRequest) (*entryv1.BatchDeleteEntryResponse, error) {
	panic("canary-panic")
}

func (*faulty) BatchCreateEntry(context.Context, *entryv1.BatchCreateEntryRequest) (*entryv1.BatchCreateEntryResponse, error) {
	return nil, store.ErrUnavailable
}

func (*faulty) SyncAuthorizedEntries(entryv1.Entry_SyncAuthorizedEntriesServer) error {
	panic("canary-panic-in-stream")
}

// TestFaultsStayInside: what goes wrong inside is in the log, with its cause, and
// a client reads that it did.
func TestFaultsStayInside(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	calls, err := newCallMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	c := &chain{gate: &gate{}, metrics: calls, log: logger}
	srv := grpc.NewServer(grpc.Creds(localCredentials{}), grpc.InTapHandle(tapIn), grpc.UnaryInterceptor(c.unary), grpc.StreamInterceptor(
		func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			// A method that the local admin may call, so that the handler is reached.
			return c.stream(srv, ss, &grpc.StreamServerInfo{FullMethod: entryv1.Entry_GetEntry_FullMethodName}, handler)
		}))
	service := &faulty{}
	entryv1.RegisterEntryServer(srv, service)
	l := bufconn.Listen(1 << 16)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := entryv1.NewEntryClient(conn)

	for name, tc := range map[string]struct {
		call func() error
		code codes.Code
		log  string
	}{
		"error": {func() error {
			_, err := client.CountEntries(t.Context(), &entryv1.CountEntriesRequest{})
			return err
		}, codes.Internal, "canary-internal"},
		"panic": {func() error {
			_, err := client.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{})
			return err
		}, codes.Internal, "canary-panic"},
		"panic in a stream": {func() error {
			s, err := client.SyncAuthorizedEntries(t.Context())
			if err != nil {
				return err
			}
			_, err = s.Recv()
			return err
		}, codes.Internal, "canary-panic-in-stream"},
		"store away": {func() error {
			_, err := client.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{})
			return err
		}, codes.Unavailable, "store: unavailable"},
	} {
		err := tc.call()
		if status.Code(err) != tc.code || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the client reads %v, want %v without the cause", name, err, tc.code)
		}
		if !strings.Contains(log.String(), tc.log) {
			t.Errorf("%s: the cause is not in the log:\n%s", name, log)
		}
	}
	if !strings.Contains(log.String(), "intercept_test.go") {
		t.Error("the log does not say where it panicked")
	}
	if service.deadline <= 0 || service.deadline > callTimeout {
		t.Errorf("a call without a deadline has %v", service.deadline)
	}
	if service.caller.Roles != policy.Local {
		t.Errorf("the caller is %+v", service.caller)
	}
}

// TestMetricsAndHealthListeners reads both side listeners of a running server.
func TestMetricsAndHealthListeners(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.HealthChecks = telemetry.HealthConfig{ListenerEnabled: true, BindAddress: "127.0.0.1", BindPort: freePort(t)}
	metricsPort := freePort(t)
	port, err := strconv.Atoi(metricsPort)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Telemetry.Prometheus = &telemetry.PrometheusConfig{Host: "127.0.0.1", Port: port}
	r := start(t, cfg)
	if err := calls["ListEntries"](t.Context(), r.admin(t)); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"http://127.0.0.1:" + cfg.HealthChecks.BindPort + "/live":  "ok",
		"http://127.0.0.1:" + cfg.HealthChecks.BindPort + "/ready": "ok",
		"http://127.0.0.1:" + metricsPort + "/metrics":             `credence_server_calls_total{code="OK",method="/spire.api.server.entry.v1.Entry/ListEntries"} 1`,
	} {
		soon(t, url+" says "+want, func(ctx context.Context) bool {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return false // Not listening yet.
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return err == nil && resp.StatusCode == http.StatusOK && strings.Contains(string(body), want)
		})
	}
}

// freePort is a port that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
