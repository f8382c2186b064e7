package agent

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/feed"
	"github.com/credence-id/credence/pkg/agent/route"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// hushed is a connection over which nothing passes once it is told so, in either
// direction, as to a process that is stopped or behind a network that loses
// everything.
type hushed struct {
	net.Conn
	hush   <-chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (c *hushed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.hush:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *hushed) Write(b []byte) (int, error) {
	select {
	case <-c.hush:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}

func (c *hushed) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// quietFeed is a server with nothing to say once the agent is in sync.
type quietFeed struct{ feedv1.UnimplementedFeedServer }

func (quietFeed) Watch(stream grpc.BidiStreamingServer[feedv1.WatchRequest, feedv1.WatchResponse]) error {
	step := &feedv1.WatchResponse{Step: &feedv1.WatchResponse_Synced{Synced: &feedv1.Synced{StoreId: "s", Revision: 1}}}
	if err := stream.Send(step); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// nothing is a cache of nothing.
type nothing struct{}

func (nothing) Open() *feedv1.Open          { return &feedv1.Open{} }
func (nothing) Apply(*feedv1.Delta) error   { return nil }
func (nothing) Synced(*feedv1.Synced) error { return nil }

// TestSilenceIsNoticed: a server that says nothing any more is left after at
// most the keepalive's time and timeout, whenever that begins, and not before
// for having nothing to say.
func TestSilenceIsNoticed(t *testing.T) {
	t.Parallel()
	for _, quiet := range []time.Duration{0, 4 * time.Second, 11 * time.Second, time.Hour + 7*time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l, done := bufconn.Listen(1<<16), make(chan error, 1)
			srv := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2}))
			feedv1.RegisterFeedServer(srv, quietFeed{})
			go func() { done <- srv.Serve(l) }()
			hush := make(chan struct{})
			r := route.New(route.Config{Addresses: []string{"a:1"}, Options: dialOptions("test"), Dial: func(ctx context.Context, _ string) (net.Conn, error) {
				conn, err := l.DialContext(ctx)
				return &hushed{Conn: conn, hush: hush, closed: make(chan struct{})}, err
			}})
			conn, err := r.Connect(t.Context(), func() route.Security { return plain{} })
			if err != nil {
				t.Fatal(err)
			}
			s, err := feed.Open(t.Context(), feed.Config{Conn: conn, Cache: nothing{}})
			if err != nil {
				t.Fatal(err)
			}
			var began time.Time
			go func() {
				time.Sleep(quiet)
				began = time.Now()
				close(hush)
			}()
			err = s.Follow()
			if took := time.Since(began); status.Code(err) != codes.Unavailable || took > keepaliveTime+keepaliveTimeout {
				t.Errorf("silent after %v: noticed after %v, by %v", quiet, took, err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			srv.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
