package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"

	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/tlspolicy"
)

// client is what is known of the peer of a TLS connection. Its certificate was
// verified in the handshake, and is again whenever the bundle has changed: what
// was true then says nothing about now.
type client struct {
	credentials.TLSInfo
	chain []*x509.Certificate // empty: no certificate was shown
	last  atomic.Pointer[verified]
	// budget is what the connection may have of unfinished messages; nil for
	// strangers, whose connection is bounded as a whole.
	budget *connlimit.Budget
	// stranger is the connection if no certificate was shown, else nil.
	stranger *strangerConn
}

// AuthType is gRPC's name for the kind of AuthInfo.
func (*client) AuthType() string { return "spiffe" }

// identify returns the SPIFFE ID of the peer's certificate as the bundle says
// now; the chain must not be empty.
func (c *client) identify(r *roots, now time.Time) (spiffeid.ID, error) {
	if v := c.last.Load(); v != nil && v.bundle == r.now.Load() && now.Before(v.until) {
		return v.id, nil
	}
	v, err := r.verify(c.chain, now)
	if err != nil {
		return spiffeid.ID{}, err
	}
	c.last.Store(v)
	return v.id, nil
}

// tlsCredentials are gRPC's for the TLS listener, whose connections come through
// a door. They make a client of every connection.
type tlsCredentials struct {
	credentials.TransportCredentials
	door *door
}

// ServerHandshake is TLS's, after the PROXY protocol's where there is one.
func (t tlsCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	e, ok := raw.(*entrant)
	if !ok {
		return nil, nil, fmt.Errorf("a %T did not come through the door", raw)
	}
	refused := func(reason string, err error) (net.Conn, credentials.AuthInfo, error) {
		t.door.refuse(reason, e.raw, err)
		return nil, nil, err
	}
	source, err := e.announced()
	switch {
	case errors.Is(err, connlimit.ErrKeyFull), errors.Is(err, connlimit.ErrFull):
		return refused(becauseSourceHandshakes, err)
	case err != nil:
		return refused(becauseProxy, err)
	}
	conn, info, err := t.TransportCredentials.ServerHandshake(e)
	switch {
	case tlspolicy.NoCommonKeyExchange(err):
		return refused(becauseKeyExchange, err)
	case err != nil:
		return refused(becauseTLS, err)
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, fmt.Errorf("TLS handshake gave a %T", info)
	}
	chain := tlsInfo.State.PeerCertificates
	conn, budget, err := e.welcome(conn, source, chain)
	if err != nil {
		return refused(welcomeReason(chain, err), err)
	}
	stranger, _ := conn.(*strangerConn)
	return conn, &client{TLSInfo: tlsInfo, chain: chain, budget: budget, stranger: stranger}, nil
}

// Clone is required by the interface.
func (t tlsCredentials) Clone() credentials.TransportCredentials {
	return tlsCredentials{t.TransportCredentials.Clone(), t.door}
}

// local is what is known of the peer of a connection to the admin's socket:
// that the file system let it in.
type local struct {
	credentials.CommonAuthInfo
	// uid and pid of the process that connected, or -1 where the system does
	// not tell. They are for the audit log alone.
	uid, pid int
}

// AuthType is gRPC's name for the kind of AuthInfo.
func (*local) AuthType() string { return "local" }

// localCredentials are gRPC's for the admin's socket: plain text.
type localCredentials struct{}

// ServerHandshake says who connected.
func (localCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uid, pid := peerOf(conn)
	return conn, &local{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		uid:            uid,
		pid:            pid,
	}, nil
}

// ClientHandshake is required by the interface.
func (localCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, &local{uid: -1, pid: -1}, nil
}

// Info is required by the interface.
func (localCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "local"}
}

// Clone is required by the interface.
func (c localCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName is required by the interface.
func (localCredentials) OverrideServerName(string) error { return nil }
