package healthapi

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

const (
	serving    = healthv1.HealthCheckResponse_SERVING
	notServing = healthv1.HealthCheckResponse_NOT_SERVING
)

// patient is what is checked.
type patient struct{ well atomic.Bool }

func (p *patient) check(context.Context) error {
	if p.well.Load() {
		return nil
	}
	return errors.New("not well")
}

func TestCheckSaysWhatIsSoNow(t *testing.T) {
	t.Parallel()
	p := &patient{}
	s := New(p.check)
	for _, well := range []bool{false, true, false, true} {
		p.well.Store(well)
		want := notServing
		if well {
			want = serving
		}
		got, err := s.Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || got.Status != want {
			t.Errorf("Check: %v, %v, want %v", got, err, want)
		}
		list, err := s.List(t.Context(), &healthv1.HealthListRequest{})
		if err != nil || len(list.Statuses) != 1 || list.Statuses[""].GetStatus() != want {
			t.Errorf("List: %v, %v, want %v", list, err, want)
		}
	}
	part := &patient{}
	s.Part("part", part.check)
	list, err := s.List(t.Context(), &healthv1.HealthListRequest{})
	if err != nil || len(list.Statuses) != 2 || list.Statuses["part"].GetStatus() != notServing || list.Statuses[""].GetStatus() != serving {
		t.Errorf("List with a part that is not well: %v, %v", list, err)
	}
	part.well.Store(true)
	if got, err := s.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "part"}); err != nil || got.Status != serving {
		t.Errorf("Check of a part: %v, %v", got, err)
	}
	if _, err := s.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "other"}); rpcerr.Status(err).Code() != codes.NotFound {
		t.Errorf("another service: %v, want NotFound", err)
	}
	s.Stop()
	s.Stop()
	if got, err := s.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || got.Status != notServing {
		t.Errorf("after Stop: %v, %v, want %v", got, err, notServing)
	}
}

// watcher is the server's side of a watch.
type watcher struct {
	grpc.ServerStream
	ctx  context.Context
	sent chan healthv1.HealthCheckResponse_ServingStatus
}

func (w *watcher) Context() context.Context { return w.ctx }

func (w *watcher) Send(r *healthv1.HealthCheckResponse) error {
	w.sent <- r.Status
	return nil
}

func TestWatchTellsChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &patient{}
		s := New(p.check)
		w := &watcher{ctx: t.Context(), sent: make(chan healthv1.HealthCheckResponse_ServingStatus, 8)}
		done := make(chan error, 1)
		go func() { done <- s.Watch(&healthv1.HealthCheckRequest{}, w) }()
		expect := func(want ...healthv1.HealthCheckResponse_ServingStatus) {
			t.Helper()
			synctest.Wait()
			for _, s := range want {
				select {
				case got := <-w.sent:
					if got != s {
						t.Errorf("sent %v, want %v", got, s)
					}
				default:
					t.Errorf("nothing sent, want %v", s)
				}
			}
			if len(w.sent) > 0 {
				t.Errorf("also sent %v", <-w.sent)
			}
		}
		expect(notServing)
		s.Changed() // Nothing has.
		expect()
		p.well.Store(true)
		expect()
		s.Changed()
		expect(serving)
		p.well.Store(false)
		s.Changed()
		expect(notServing)
		s.Stop()
		if err := <-done; rpcerr.Status(err).Code() != codes.Unavailable {
			t.Errorf("after Stop: %v, want Unavailable", err)
		}
	})
}

func TestWatchOfUnknownService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New((&patient{}).check)
		ctx, cancel := context.WithCancel(t.Context())
		w := &watcher{ctx: ctx, sent: make(chan healthv1.HealthCheckResponse_ServingStatus, 8)}
		done := make(chan error, 1)
		go func() { done <- s.Watch(&healthv1.HealthCheckRequest{Service: "other"}, w) }()
		if got := <-w.sent; got != healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
			t.Errorf("sent %v", got)
		}
		s.Changed()
		synctest.Wait()
		if len(w.sent) > 0 {
			t.Errorf("then sent %v", <-w.sent)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
}
