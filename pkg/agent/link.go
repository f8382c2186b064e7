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

	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/credence-id/credence/pkg/tlspolicy"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// A silent server is noticed after keepaliveTime + keepaliveTimeout.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// maxMessage bounds one message of the server; SPIRE's servers send sets
	// of entries in one.
	maxMessage = 64 << 20
)

// errLinkClosed is returned by calls on a connection that was replaced.
var errLinkClosed = errors.New("the connection to the server was replaced")

// link is one connection to the server, authenticated by one SVID. Calls hold
// it open; close waits for them.
type link struct {
	conn *route.Conn
	svid *nodeSVID // nil: not authenticated
	// replaced is closed when another one is in use.
	replaced chan struct{}

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

// shown is the chain the server showed in the handshake.
func (l *link) shown() [][]byte {
	v, ok := l.conn.Security.(*verifier)
	if !ok {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.shown
}

// dialOptions go to each connection to a server. gRPC sets TCP_USER_TIMEOUT to
// the keepalive's timeout, so that sending into nothing ends as soon as hearing
// nothing does.
func dialOptions(version string) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithUserAgent("credence-agent/" + version),
	}
}

// dial connects to the server in use, or to another one, and waits until the
// connection is up, so that an error names what went wrong with the handshake.
func (a *Agent) dial(ctx context.Context, own *nodeSVID) (*link, error) {
	conn, err := a.route.Connect(ctx, func() route.Security { return a.secure(own) })
	return newLink(own, conn, err)
}

// dialOther connects to any server but the one at an address.
func (a *Agent) dialOther(ctx context.Context, own *nodeSVID, but string) (*link, error) {
	conn, err := a.route.Elsewhere(ctx, but, func() route.Security { return a.secure(own) })
	return newLink(own, conn, err)
}

func newLink(own *nodeSVID, conn *route.Conn, err error) (*link, error) {
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, svid: own, replaced: make(chan struct{})}, nil
}

// secure is what one attempt to connect is secured with.
func (a *Agent) secure(own *nodeSVID) *verifier {
	v := &verifier{check: tlsconfig.VerifyPeerCertificate(a.trust, tlsconfig.AuthorizeID(a.serverID))}
	a.setTLS(v, own)
	return v
}

func (a *Agent) setTLS(v *verifier, own *nodeSVID) {
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
	v.creds = notedTLS{credentials.NewTLS(conf), v}
}

// errUntrusted says that who answered is not the server by what the agent
// trusts.
var errUntrusted = errors.New("the server could not be verified")

// verifier keeps why a handshake was refused, which gRPC only logs.
type verifier struct {
	check func(raw [][]byte, chains [][]*x509.Certificate) error
	// postQuantum: no other key exchange is taken.
	postQuantum bool
	creds       credentials.TransportCredentials

	mu        sync.Mutex
	last      error    // guarded by mu
	handshake error    // guarded by mu
	shown     [][]byte // guarded by mu: the server's chain
}

var _ route.Security = (*verifier)(nil)

// Credentials is route.Security.
func (v *verifier) Credentials() credentials.TransportCredentials { return v.creds }

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
	v.last, v.shown = err, raw
	return err
}

// Explain is route.Security.
func (v *verifier) Explain(err error) error {
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
	conn, err := a.route.Connect(ctx, func() route.Security {
		v := &verifier{check: func([][]byte, [][]*x509.Certificate) error { return nil }}
		a.setTLS(v, nil)
		return v
	})
	l, err := newLink(nil, conn, err)
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
	if err := tlsconfig.VerifyPeerCertificate(candidate, tlsconfig.AuthorizeID(a.serverID))(l.shown(), nil); err != nil {
		return fmt.Errorf("%w by the bundle it gave: %w", errUntrusted, err)
	}
	a.trust.current.Store(candidate.current.Load())
	return nil
}

var _ x509bundle.Source = (*trust)(nil)
