package server

import (
	"strings"
	"testing"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// watchFeed opens the agent's stream and awaits Synced.
func (a *testAgent) watchFeed(t testing.TB, open *feedv1.Open) feedv1.Feed_WatchClient {
	t.Helper()
	s, err := feedv1.NewFeedClient(a.conn).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: open}}); err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetSynced() != nil {
			return s
		}
	}
}

// TestStopDrains: a server that is told to stop asks the agents to go to others
// first, is not well meanwhile, and goes on with all else.
func TestStopDrains(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	timeout := time.Minute
	cfg.Server.DrainTimeout = &timeout
	r := start(t, cfg)
	goes, stays := r.attest(t), r.attest(t)
	stream := goes.watchFeed(t, &feedv1.Open{Alternatives: 1})
	stays.watchFeed(t, &feedv1.Open{})
	health := healthv1.NewHealthClient(r.admin(t))
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	if resp, err := stream.Recv(); err != nil || resp.GetDrain() == nil {
		t.Errorf("got %v, %v, want Drain", resp, err)
	}
	if h, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || h.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health while it is drained: %v, %v", h, err)
	}
	if err := r.inside.ready(t.Context()); err == nil {
		t.Error("ready while it is drained")
	}
	r.attest(t) // Others' calls are answered.
	select {
	case err := <-stopped:
		t.Fatalf("it did not wait for the agent: %v", err)
	default:
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > stopGrace+time.Second {
		t.Errorf("it took %v after the agent had gone: the other one has nowhere to go", took)
	}
}

// TestStopDoesNotWaitLong for agents that do not go, and not at all if that is
// what it is told.
func TestStopDoesNotWaitLong(t *testing.T) {
	t.Parallel()
	for _, timeout := range []time.Duration{0, 200 * time.Millisecond} {
		cfg := testConfig(t)
		cfg.Server.DrainTimeout = &timeout
		r := start(t, cfg)
		r.attest(t).watchFeed(t, &feedv1.Open{Alternatives: 1})
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if said := strings.Contains(r.log.String(), "are cut off"); said != (timeout > 0) {
			t.Errorf("after %v: that agents are cut off was said: %v", timeout, said)
		}
	}
}

// TestDrainedIsNotReady until it is called off.
func TestDrainedIsNotReady(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	watch, err := healthv1.NewHealthClient(r.admin(t)).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if h, err := watch.Recv(); err != nil || h.GetStatus() != want {
			t.Errorf("health: %v, %v, want %v", h, err, want)
		}
	}
	expect(healthv1.HealthCheckResponse_SERVING)
	if err := r.inside.hub.Drain(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	expect(healthv1.HealthCheckResponse_NOT_SERVING)
	r.inside.hub.Undrain()
	expect(healthv1.HealthCheckResponse_SERVING)
}
