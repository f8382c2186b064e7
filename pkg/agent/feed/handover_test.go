package feed

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// live is a Feed server that sends what it is given, until it is told to end or
// the agent leaves.
type live struct {
	feedv1.UnimplementedFeedServer
	steps chan *feedv1.WatchResponse
	end   chan error

	opened chan *feedv1.Open
	left   chan time.Time // when the stream was over
}

func newLive(steps ...*feedv1.WatchResponse) *live {
	l := &live{
		steps: make(chan *feedv1.WatchResponse, 16), end: make(chan error, 1),
		opened: make(chan *feedv1.Open, 1), left: make(chan time.Time, 1),
	}
	for _, s := range steps {
		l.steps <- s
	}
	return l
}

func (l *live) Watch(stream grpc.BidiStreamingServer[feedv1.WatchRequest, feedv1.WatchResponse]) error {
	defer func() { l.left <- time.Now() }()
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	l.opened <- req.GetOpen()
	for {
		select {
		case s := <-l.steps:
			if err := stream.Send(s); err != nil {
				return err
			}
		case err := <-l.end:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (l *live) serve(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return serve(t, func(g *grpc.Server) { feedv1.RegisterFeedServer(g, l) })
}

func drainStep() *feedv1.WatchResponse {
	return &feedv1.WatchResponse{Step: &feedv1.WatchResponse_Drain{Drain: &feedv1.Drain{Reason: "maintenance"}}}
}

// moving is a stream at one server, followed, that was asked to go.
type moving struct {
	*Stream
	cache *journal
	ended chan error
}

func startMoving(t *testing.T, from *live) *moving {
	t.Helper()
	m := &moving{cache: new(journal), ended: make(chan error, 1)}
	asked := make(chan string, 1)
	s, err := Open(t.Context(), Config{
		Conn: from.serve(t), Cache: m.cache, Alternatives: 2, OnDrain: func(reason string) { asked <- reason },
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Stream = s
	if o := <-from.opened; o.GetAlternatives() != 2 || o.GetLastResort() {
		t.Errorf("opened with %v", o)
	}
	go func() { m.ended <- s.Follow() }()
	from.steps <- drainStep()
	if reason := <-asked; reason != "maintenance" {
		t.Errorf("asked to go: %q", reason)
	}
	return m
}

func (m *moving) revisions() []uint64 {
	var out []uint64
	for _, d := range m.cache.deltas {
		out = append(out, d.GetRevision())
	}
	return out
}

// TestHandOver: the old stream is open until the new one is in sync, and what it
// said meanwhile is not applied.
func TestHandOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from, to := newLive(synced(10)), newLive()
		m := startMoving(t, from)
		type result struct {
			next *Stream
			err  error
		}
		handed, conn := make(chan result, 1), to.serve(t)
		go func() {
			next, err := m.HandOver(t.Context(), Config{Conn: conn, Cache: m.cache, LastResort: true})
			handed <- result{next, err}
		}()
		if o := <-to.opened; o.GetStoreId() != "held" || !o.GetLastResort() {
			t.Errorf("opened with %v, want the cursor", o)
		}
		from.steps <- delta(&feedv1.Delta{Revision: 11}) // The new server says it too.
		to.steps <- delta(&feedv1.Delta{Revision: 12, Resync: []uint32{1}, More: true})
		time.Sleep(time.Hour) // The server is there, and has much to say.
		to.steps <- delta(&feedv1.Delta{Revision: 12})
		synctest.Wait()
		select {
		case at := <-from.left:
			t.Errorf("the old stream was left at %v, before the new one was in sync", at)
		default:
		}
		to.steps <- synced(12)
		got := <-handed
		if got.err != nil {
			t.Fatal(got.err)
		}
		if err := <-m.ended; !errors.Is(err, ErrHandedOver) {
			t.Errorf("the old stream ended with %v", err)
		}
		<-from.left
		to.steps <- delta(&feedv1.Delta{Revision: 13})
		go func() {
			synctest.Wait()
			to.end <- status.Error(codes.PermissionDenied, "enough")
		}()
		if err := got.next.Follow(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("the new stream ended with %v", err)
		}
		if want := []uint64{12, 12, 13}; !slices.Equal(m.revisions(), want) {
			t.Errorf("applied %v, want %v", m.revisions(), want)
		}
	})
}

// TestHandOverFails: the agent stays where it is, unless it took over half of
// what another server said.
func TestHandOverFails(t *testing.T) {
	t.Parallel()
	unavailable := status.Error(codes.Unavailable, "behind")
	for name, tc := range map[string]struct {
		steps []*feedv1.WatchResponse
		end   error
		stays bool
	}{
		"refused":    {nil, unavailable, true},
		"silent":     {nil, nil, true},
		"in between": {[]*feedv1.WatchResponse{delta(&feedv1.Delta{Revision: 12, More: true})}, unavailable, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				from, to := newLive(synced(10)), newLive(tc.steps...)
				m := startMoving(t, from)
				begin := time.Now()
				if tc.end != nil {
					go func() {
						<-to.opened
						synctest.Wait()
						to.end <- tc.end
					}()
				}
				if next, err := m.HandOver(t.Context(), Config{Conn: to.serve(t), Cache: m.cache}); err == nil || next != nil {
					t.Fatalf("handed over: %v", err)
				}
				if took := time.Since(begin); took > handOverTimeout {
					t.Errorf("it took %v", took)
				}
				<-to.left
				if !tc.stays {
					if err := <-m.ended; status.Code(err) != codes.Unavailable {
						t.Errorf("ended with %v, want what the other server said", err)
					}
					return
				}
				from.steps <- delta(&feedv1.Delta{Revision: 11})
				synctest.Wait()
				from.end <- status.Error(codes.PermissionDenied, "enough")
				if err := <-m.ended; status.Code(err) != codes.PermissionDenied {
					t.Errorf("ended with %v", err)
				}
				if want := []uint64{11}; !slices.Equal(m.revisions(), want) {
					t.Errorf("applied %v, want %v", m.revisions(), want)
				}
				if _, err := m.HandOver(t.Context(), Config{}); status.Code(err) != codes.PermissionDenied {
					t.Errorf("a stream that is over was handed over: %v", err)
				}
			})
		})
	}
}

// TestHandOverWaitsForTheEndOfAChange, for as long as its context lives.
func TestHandOverWaitsForTheEndOfAChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from, to := newLive(synced(10)), newLive(synced(12))
		m := startMoving(t, from)
		conn := to.serve(t)
		from.steps <- delta(&feedv1.Delta{Revision: 12, Resync: []uint32{1}})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.HandOver(ctx, Config{Conn: conn, Cache: m.cache}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("in the middle of a change: %v", err)
		}
		from.steps <- synced(12)
		next, err := m.HandOver(t.Context(), Config{Conn: conn, Cache: m.cache})
		if err != nil {
			t.Fatal(err)
		}
		to.end <- status.Error(codes.PermissionDenied, "enough")
		_ = next.Follow() // It was told to end.
		if err := <-m.ended; !errors.Is(err, ErrHandedOver) {
			t.Errorf("the old stream ended with %v", err)
		}
	})
}

// TestRefusedDuringHandOver: what one of the two servers knows of a ban holds at
// once, whatever the other one says or does not say.
func TestRefusedDuringHandOver(t *testing.T) {
	t.Parallel()
	said, err := status.New(codes.PermissionDenied, "banned").WithDetails(&types.PermissionDeniedDetails{Reason: types.PermissionDeniedDetails_AGENT_BANNED})
	if err != nil {
		t.Fatal(err)
	}
	more := delta(&feedv1.Delta{Revision: 12, More: true})
	for name, tc := range map[string]struct {
		steps []*feedv1.WatchResponse // of the other server
		byOld bool
	}{
		"by the old one, the other is silent":     {nil, true},
		"by the old one, the other has much more": {[]*feedv1.WatchResponse{more}, true},
		"by the other":             {nil, false},
		"by the other, in between": {[]*feedv1.WatchResponse{more}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				from, to := newLive(synced(10)), newLive(tc.steps...)
				m := startMoving(t, from)
				begin := time.Now()
				go func() {
					<-to.opened
					synctest.Wait()
					if tc.byOld {
						from.end <- said.Err()
					} else {
						to.end <- said.Err()
					}
				}()
				if next, err := m.HandOver(t.Context(), Config{Conn: to.serve(t), Cache: m.cache}); err == nil || next != nil {
					t.Errorf("handed over: %v", err)
				}
				if err := <-m.ended; status.Code(err) != codes.PermissionDenied {
					t.Errorf("the stream ended with %v", err)
				}
				<-from.left
				<-to.left
				if took := time.Since(begin); took != 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
