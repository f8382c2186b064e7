package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
)

// hangup closes connections to members that hang. gRPC spreads calls over all
// connections and finds out after keepaliveTime and more that nothing comes
// over one; until then a third of the calls would wait for a paused member, and
// the feed might for ever so long. A closed one is made anew, and used again
// when the member answers.
type hangup struct {
	mu    sync.Mutex
	conns map[string]*watchedConn // guarded by mu; by watchedConn.name
	last  int                     // guarded by mu
}

func newHangup() *hangup { return &hangup{conns: make(map[string]*watchedConn)} }

// watchedConn is a connection that knows when something came.
type watchedConn struct {
	net.Conn
	to   *hangup
	name connName

	mu    sync.Mutex
	heard time.Time // guarded by mu
}

// connName is the address of one connection, by which gRPC names it.
type connName struct {
	net.Addr
	number int
}

// String implements net.Addr.
func (n connName) String() string { return fmt.Sprintf("%s#%d", n.Addr, n.number) }

// RemoteAddr implements net.Conn.
func (c *watchedConn) RemoteAddr() net.Addr { return c.name }

// Read implements net.Conn.
func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.mu.Lock()
		c.heard = time.Now()
		c.mu.Unlock()
	}
	return n, err
}

// Close implements net.Conn.
func (c *watchedConn) Close() error {
	c.to.mu.Lock()
	if c.to.conns[c.name.String()] == c {
		delete(c.to.conns, c.name.String())
	}
	c.to.mu.Unlock()
	return c.Conn.Close()
}

// dial implements what grpc.WithContextDialer takes.
func (h *hangup) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	c := &watchedConn{Conn: conn, to: h, name: connName{conn.RemoteAddr(), h.last}, heard: time.Now()}
	h.conns[c.name.String()] = c
	return c, nil
}

// intercept is a grpc.UnaryClientInterceptor. A call that was given up hangs up
// if nothing has come over its connection since it began. One for which there is
// no connection fails with the reason, where etcd's client would wait for one.
func (h *hangup) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	var p peer.Peer
	begin := time.Now()
	err := invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false), grpc.Peer(&p))...)
	if err != nil && p.Addr != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(begin) > minRequestTimeout/3 {
		h.silentSince(p.Addr.String(), begin)
	}
	return err
}

func (h *hangup) silentSince(name string, begin time.Time) {
	h.mu.Lock()
	c := h.conns[name]
	h.mu.Unlock()
	if c == nil {
		return
	}
	c.mu.Lock()
	silent := c.heard.Before(begin)
	c.mu.Unlock()
	if silent {
		_ = c.Close() // gRPC sees that it is gone.
	}
}
