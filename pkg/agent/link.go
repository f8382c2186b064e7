package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/tlspolicy"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// A silent server is noticed after keepaliveTime + keepaliveTimeout.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// connectTimeout bounds dialling and the TLS handshake.
	connectTimeout = 10 * time.Second
	// maxMessage bounds one message of the server; SPIRE's servers send sets
	// of entries in one.
	maxMessage = 64 << 20
)

// errLinkClosed is returned by calls on a connection that was replaced.
var errLinkClosed = errors.New("the connection to the server was replaced")

// link is one connection to the server, authenticated by one SVID. Calls hold
// it open; close waits for them.
type link struct {
	conn *grpc.ClientConn
	svid *nodeSVID // nil: not authenticated

	mu     sync.RWMutex // held for reading by each unary call
	closed bool         // guarded by mu
}

// use runs one call on the connection.
func (l *link) use(call func(grpc.ClientConnInterface) error) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return errLinkClosed
	}
	return call(l.conn)
}

// close lets calls under way end first, so it is given a context that bounds
// them.
func (l *link) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.conn.Close()
}

// dial connects to the server and waits until the connection is up, so that
// an error names what went wrong with the handshake.
func (a *Agent) dial(ctx context.Context, own *nodeSVID) (*link, error) {
	v := &verifier{check: tlsconfig.VerifyPeerCertificate(a.trust, tlsconfig.AuthorizeID(a.serverID))}
	return a.dialTLS(ctx, own, v)
}

func (a *Agent) dialTLS(ctx context.Context, own *nodeSVID, v *verifier) (*link, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The SPIFFE verification in VerifyConnection, which also runs when a
		// session is resumed, replaces that of the Web: a server's name is its
		// SPIFFE ID.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection:   v.verify,
	}
	if a.config.Agent.Experimental.RequirePQKEM {
		tlspolicy.RequirePostQuantum(conf)
		v.postQuantum = true
	}
	if own != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			chain := make([][]byte, 0, len(own.Certificates))
			for _, c := range own.Certificates {
				chain = append(chain, c.Raw)
			}
			return &tls.Certificate{Certificate: chain, PrivateKey: own.PrivateKey, Leaf: own.Certificates[0]}, nil
		}
	}
	conn, err := grpc.NewClient("dns:///"+a.config.Agent.serverAddr(),
		grpc.WithTransportCredentials(notedTLS{credentials.NewTLS(conf), v}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("credence-agent/"+a.version),
	)
	if err != nil {
		return nil, fmt.Errorf("agent.server_address: %w", err)
	}
	if err := a.await(ctx, conn); err != nil {
		return nil, errors.Join(v.explain(err), conn.Close())
	}
	return &link{conn: conn, svid: own}, nil
}

// await waits until the connection is ready or has failed once.
func (a *Agent) await(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn.Connect()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return fmt.Errorf("connecting to the server at %s: %w", a.config.Agent.serverAddr(), errUnreachable)
		case connectivity.Idle, connectivity.Connecting:
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("connecting to the server at %s: %w", a.config.Agent.serverAddr(), ctx.Err())
		}
	}
}

// errUnreachable is refined by verifier.explain where the handshake says more.
var errUnreachable = errors.New("no connection; is the server running, and is agent.server_address right?")

// errUntrusted says that who answered is not the server by what the agent
// trusts.
var errUntrusted = errors.New("the server could not be verified")

// verifier keeps why a handshake was refused, which gRPC only logs.
type verifier struct {
	check func(raw [][]byte, chains [][]*x509.Certificate) error
	// postQuantum: no other key exchange is taken.
	postQuantum bool

	mu        sync.Mutex
	last      error // guarded by mu
	handshake error // guarded by mu
}

// notedTLS tells the verifier how a handshake ended.
type notedTLS struct {
	credentials.TransportCredentials
	v *verifier
}

// ClientHandshake is TLS's.
func (t notedTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	t.v.mu.Lock()
	defer t.v.mu.Unlock()
	t.v.handshake = err
	return conn, info, err
}

// Clone is required by the interface.
func (t notedTLS) Clone() credentials.TransportCredentials {
	return notedTLS{t.TransportCredentials.Clone(), t.v}
}

func (v *verifier) verify(s tls.ConnectionState) error {
	raw := make([][]byte, 0, len(s.PeerCertificates))
	for _, c := range s.PeerCertificates {
		raw = append(raw, c.Raw)
	}
	err := v.check(raw, nil)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = err
	return err
}

func (v *verifier) explain(err error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.last == nil && v.postQuantum && tlspolicy.Refused(v.handshake):
		return fmt.Errorf("%w: %w: agent.experimental.require_pq_kem is set, and the server may know no post-quantum key exchange: upgrade it, or remove the key", err, v.handshake)
	case v.last == nil:
		return err
	}
	return fmt.Errorf("%w: %w: is the trust bundle the one of this server, and is this machine's clock right? After the first contact the bundle is the one kept in data_dir: if the server was set up anew, set agent.rebootstrap_mode, or remove %s and %s there and attest again", errUntrusted, v.last, stateFile, svidFile)
}

// bootstrap gets the agent something to verify the server with.
func (a *Agent) bootstrap(ctx context.Context) error {
	if a.trust.usable(time.Now()) {
		return nil
	}
	s := a.config.Agent
	if !s.InsecureBootstrap {
		b, err := a.bootstrapBundle(ctx)
		if err != nil {
			return err
		}
		a.trust.current.Store(b)
		return nil
	}
	a.log.WarnContext(ctx, "trusting whoever answers at the server's address, as insecure_bootstrap is set: not for production")
	return a.bootstrapInsecurely(ctx)
}

// bootstrapInsecurely takes the bundle from the server itself and checks only
// that the server's own certificate agrees with it.
func (a *Agent) bootstrapInsecurely(ctx context.Context) error {
	var leaf [][]byte
	v := &verifier{check: func(raw [][]byte, _ [][]*x509.Certificate) error {
		leaf = raw
		return nil
	}}
	l, err := a.dialTLS(ctx, nil, v)
	if err != nil {
		return err
	}
	defer a.closing(ctx, l)
	b, err := bundlev1.NewBundleClient(l.conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return fmt.Errorf("getting the server's bundle: %w", err)
	}
	candidate := &trust{td: a.trust.td}
	if err := candidate.learn(b); err != nil {
		return err
	}
	if err := tlsconfig.VerifyPeerCertificate(candidate, tlsconfig.AuthorizeID(a.serverID))(leaf, nil); err != nil {
		return fmt.Errorf("%w by the bundle it gave: %w", errUntrusted, err)
	}
	a.trust.current.Store(candidate.current.Load())
	return nil
}

var _ x509bundle.Source = (*trust)(nil)
