package feedapi_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/feedapi"
)

// openWith opens a stream that says where else the agent could go, and awaits
// Synced.
func openWith(t *testing.T, ctx context.Context, conn grpc.ClientConnInterface, open *feedv1.Open) (feedv1.Feed_WatchClient, error) { //nolint:revive // t goes first here
	t.Helper()
	s, err := feedv1.NewFeedClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: open}}); err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := s.Recv()
		if err != nil {
			return nil, err
		}
		if resp.GetSynced() != nil {
			return s, nil
		}
	}
}

// TestDrain: those that have another server are asked to go, at their pace, and
// waited for; those that have none are neither.
func TestDrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const agents, over = 10, 10 * time.Second
		w := apitest.New(t, apitest.Options{})
		begin := time.Now()
		asked := make(chan time.Duration, agents)
		for i := range agents {
			agent := w.NewAgent(t, fmt.Sprint("agent", i))
			ctx, cancel := context.WithCancel(t.Context())
			s, err := openWith(t, ctx, w.Dial(t, &agent.Cert), &feedv1.Open{Alternatives: 2})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				resp, err := s.Recv()
				if err != nil || resp.GetDrain().GetReason() == "" {
					t.Errorf("got %v, %v, want Drain with a reason", resp, err)
				}
				asked <- time.Since(begin)
				time.Sleep(100 * time.Millisecond) // It takes a moment to go.
				cancel()
			}()
		}
		alone := w.NewAgent(t, "alone")
		stays, err := openWith(t, t.Context(), w.Dial(t, &alone.Cert), &feedv1.Open{})
		if err != nil {
			t.Fatal(err)
		}

		var left []int
		if err := w.Hub.Drain(t.Context(), over, func(n int) { left = append(left, n) }); err != nil {
			t.Fatal(err)
		}
		var at []time.Duration
		for range agents {
			at = append(at, <-asked)
		}
		slices.Sort(at)
		for i, d := range at {
			if want := over * time.Duration(i) / agents; d < want || d > want+10*time.Millisecond {
				t.Errorf("agent %d was asked after %v, want %v", i, d, want)
			}
		}
		if want := []int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}; !slices.Equal(left, want) {
			t.Errorf("progress: %v, want %v", left, want)
		}
		if now := w.Hub.Agents(); len(now) != 1 || now[0].ID != alone.ID || !w.Hub.Draining() {
			t.Errorf("left: %+v", now)
		}

		// The one that stays is served as before.
		e := w.Create(t, w.Entry(t, alone.ID, "/later"))[0]
		resp, err := stays.Recv()
		if err != nil || len(resp.GetDelta().GetUpserts()) != 1 || resp.GetDelta().GetUpserts()[0].GetEntry().GetId() != e.ID {
			t.Errorf("the agent that stays got %v, %v", resp, err)
		}
	})
}

// TestDrainRefuses: while the server is drained, and until that is called off,
// it lets in only whom no other server takes, and asks them to go again.
func TestDrainRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := apitest.New(t, apitest.Options{})
		agent := w.NewAgent(t, "one")
		conn := w.Dial(t, &agent.Cert)
		if err := w.Hub.Drain(t.Context(), time.Second, nil); err != nil {
			t.Fatal(err)
		}
		_, err := openWith(t, t.Context(), conn, &feedv1.Open{Alternatives: 1})
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "drained") {
			t.Errorf("a new stream: %v, want Unavailable", err)
		}
		s, err := openWith(t, t.Context(), conn, &feedv1.Open{Alternatives: 1, LastResort: true})
		if err != nil {
			t.Fatalf("as a last resort: %v", err)
		}
		if resp, err := s.Recv(); err != nil || resp.GetDrain() == nil {
			t.Errorf("after it: %v, %v, want Drain", resp, err)
		}
		if err := w.Hub.Drain(t.Context(), time.Second, nil); err != nil {
			t.Errorf("it is waited for: %v", err)
		}
		w.Hub.Undrain()
		w.Hub.Undrain() // does nothing
		var left []int
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.Hub.Drain(ctx, time.Second, func(n int) { left = append(left, n) }); !errors.Is(err, context.Canceled) || len(left) != 1 || left[0] != 1 {
			t.Errorf("when it is drained again, the agent that is still there is asked again: %v, %v", left, err)
		}
		w.Hub.Undrain()
		if _, err := openWith(t, t.Context(), conn, &feedv1.Open{Alternatives: 1}); err != nil || w.Hub.Draining() {
			t.Errorf("after Undrain: %v", err)
		}
	})
}

// TestDrainRenewal: an agent that renews its SVID before its turn to go, comes
// back and is asked then.
func TestDrainRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := apitest.New(t, apitest.Options{})
		agents := []*apitest.Agent{w.NewAgent(t, "one"), w.NewAgent(t, "two")}
		for _, a := range agents {
			if _, err := openWith(t, t.Context(), w.Dial(t, &a.Cert), &feedv1.Open{Alternatives: 1}); err != nil {
				t.Fatal(err)
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- w.Hub.Drain(t.Context(), time.Minute, nil) }()
		time.Sleep(time.Second) // The first was asked, the other will be.
		begin, asked := time.Now(), 0
		for _, a := range agents {
			ctx, cancel := context.WithCancel(t.Context())
			s, err := openWith(t, ctx, w.Dial(t, &a.Cert), &feedv1.Open{Alternatives: 1})
			if err != nil {
				cancel()
				continue
			}
			if resp, err := s.Recv(); err != nil || resp.GetDrain() == nil || time.Since(begin) != 29*time.Second {
				t.Errorf("after %v: %v, %v, want Drain", time.Since(begin), resp, err)
			}
			asked++
			cancel()
		}
		if asked != 1 {
			t.Errorf("%d of two agents were let in again, want the one that was not asked yet", asked)
		}
		w.Hub.Undrain()
		if err := <-ended; err != nil && !errors.Is(err, feedapi.ErrCalledOff) {
			t.Errorf("the drain ended with %v, want that it was called off, or nil", err)
		}
	})
}

// TestDrainEnds by what is done to it, while an agent takes no notice.
func TestDrainEnds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(*feedapi.Hub, context.CancelFunc)
		want func(error) bool
	}{
		"context":  {func(_ *feedapi.Hub, cancel context.CancelFunc) { cancel() }, func(err error) bool { return errors.Is(err, context.Canceled) }},
		"undrain":  {func(h *feedapi.Hub, _ context.CancelFunc) { h.Undrain() }, func(err error) bool { return errors.Is(err, feedapi.ErrCalledOff) }},
		"stopping": {func(h *feedapi.Hub, _ context.CancelFunc) { h.Stop() }, func(err error) bool { return status.Code(err) == codes.Unavailable }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := apitest.New(t, apitest.Options{})
				agent := w.NewAgent(t, "one")
				if _, err := openWith(t, t.Context(), w.Dial(t, &agent.Cert), &feedv1.Open{Alternatives: 1}); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- w.Hub.Drain(ctx, time.Minute, nil) }()
				synctest.Wait()
				tc.end(w.Hub, cancel)
				if err := <-ended; !tc.want(err) {
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
}
