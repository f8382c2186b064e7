package fleet

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	callTimeout = 30 * time.Second
	// As the real agent's.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// buffers of a connection, small because there are thousands.
	buffers = 4 << 10
)

// link is one connection. Calls hold it open; close waits for them.
type link struct {
	conn *route.Conn
	wire *wire

	mu     sync.RWMutex // held for reading by each call
	closed bool         // guarded by mu
}

// errNotConnected is a moment's, so it is Unavailable as any loss.
var errNotConnected = status.Error(codes.Unavailable, "no connection, or one that was replaced")

// use runs one call on the connection.
func (l *link) use(call func(grpc.ClientConnInterface) error) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return errNotConnected
	}
	return call(l.conn)
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		_ = l.conn.Close() // It served its purpose.
	}
}

// replace puts a new connection, or none, in the place of the old one.
func (a *agent) replace(l *link) {
	if old := a.link.Swap(l); old != nil {
		a.fleet.background.Go(old.close)
	}
}

// newRoute is the real agent's choice of a server, from an address of its own.
func (f *Fleet) newRoute(source net.IP) *route.Route {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: source}}
	return route.New(route.Config{
		Addresses: f.cfg.Servers,
		Options: []grpc.DialOption{
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
			grpc.WithReadBufferSize(buffers), grpc.WithWriteBufferSize(buffers),
			grpc.WithStatsHandler(payloads{&f.stats}), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)),
		},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			return counted{c, &f.stats}, nil
		},
	})
}

// secured is mutual TLS, or the server's half of it.
type secured struct{ conf *tls.Config }

var _ route.Security = secured{}

// Credentials is route.Security.
func (s secured) Credentials() credentials.TransportCredentials { return credentials.NewTLS(s.conf) }

// Explain is route.Security.
func (s secured) Explain(err error) error { return err }

// secure is for a connection with the SVID, or without one.
func (a *agent) secure(own *x509svid.SVID) func() route.Security {
	authorized := tlsconfig.AuthorizeID(a.fleet.server)
	return func() route.Security {
		conf := tlsconfig.TLSClientConfig(&a.fleet.trust, authorized)
		if own != nil {
			conf = tlsconfig.MTLSClientConfig(own, &a.fleet.trust, authorized)
		}
		conf.MinVersion = tls.VersionTLS13
		return secured{conf}
	}
}

// dial connects to the server in use, or to another one.
func (a *agent) dial(ctx context.Context, own *x509svid.SVID) (*link, error) {
	conn, err := a.route.Connect(ctx, a.secure(own))
	return a.newLink(conn, err)
}

// dialOther connects to any server but the one at an address.
func (a *agent) dialOther(ctx context.Context, own *x509svid.SVID, but string) (*link, error) {
	conn, err := a.route.Elsewhere(ctx, but, a.secure(own))
	return a.newLink(conn, err)
}

func (a *agent) newLink(conn *route.Conn, err error) (*link, error) {
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, wire: newWire(a.fleet.table)}, nil
}

// serverID is who a server of the trust domain is.
func serverID(td spiffeid.TrustDomain) (spiffeid.ID, error) {
	return spiffeid.FromPath(td, "/spire/server")
}

// watched has the entries of the push stream decoded by wire.
type watched struct{ *link }

// Invoke is grpc.ClientConnInterface.
func (w watched) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return w.conn.Invoke(ctx, method, args, reply, opts...)
}

// NewStream is grpc.ClientConnInterface.
func (w watched) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return w.conn.NewStream(ctx, desc, method, append(opts, grpc.ForceCodecV2(w.wire))...)
}
