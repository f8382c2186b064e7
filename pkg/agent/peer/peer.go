package peer

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"sync"

	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/telemetry"
	"google.golang.org/grpc/credentials"
)

// Sentinel errors, tested with errors.Is.
var (
	// ErrGone is wrapped when the process has exited or its connection was
	// closed. It is also an fs.ErrNotExist.
	ErrGone error = goneError{}
	// ErrChanged is wrapped when the process is not as it was when it
	// connected: another user, group or program.
	ErrChanged = errors.New("the process is not as it was when it connected")
	// ErrPIDNamespace is wrapped when the kernel gives the caller no PID.
	ErrPIDNamespace = errors.New("the caller is in another PID namespace: the agent needs the host PID namespace")
)

type goneError struct{}

func (goneError) Error() string        { return "the process is gone" }
func (goneError) Is(target error) bool { return target == fs.ErrNotExist }

// Prober finds the process on the other end of a connection.
type Prober func(net.Conn) (*Process, error)

// Config of Credentials. The zero value works.
type Config struct {
	// Log is told of refused connections. Default: nowhere.
	Log *slog.Logger
	// Prober replaces the kernel's word, for connections that have no kernel
	// behind them, such as bufconn's in tests. Default: SO_PEERPIDFD and
	// SO_PEERCRED.
	Prober Prober
	// Limits of each user's processes. Calls are counted if the server is made
	// with the interceptors Credentials.Unary and
	// Credentials.Stream.
	Limits Limits
	// Refused, if set, is told the reason of what Limits refused.
	Refused func(reason string)
}

// Credentials are gRPC transport credentials for the server side of a Unix
// socket. Nothing is exchanged with the caller: the kernel is asked.
//
// Serve on the Listener it wraps, and keep Run running: without Run a process
// that exits is noticed by Check only.
type Credentials struct {
	log   *slog.Logger
	probe Prober
	watch watcher
	guard *guard

	foreignPID sync.Once // the first caller without a PID is a warning
}

// NewCredentials returns credentials for any number of sockets. It starts
// nothing and holds no descriptors until a connection comes.
func NewCredentials(cfg Config) *Credentials {
	c := &Credentials{log: cfg.Log, probe: cfg.Prober, guard: newGuard(cfg.Limits, cfg.Refused)}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.probe == nil {
		c.probe = probeSocket
	}
	return c
}

// Run ends connections, and closes Done, as soon as their process has exited.
// It uses one goroutine and no thread, and returns nil when ctx ends.
func (c *Credentials) Run(ctx context.Context) error { return c.watch.run(ctx) }

// Listener wraps l so that whoever closes one of its connections, on whatever
// path, also gives back what was held of its process. ServerHandshake accepts
// only connections of such a listener.
func (c *Credentials) Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: raw}, nil
}

// conn owns the Process of its other end. gRPC closes the connection it got
// from the listener, and not the one from the handshake, when its first write
// fails; so they are one and the same.
type conn struct {
	net.Conn
	in *connlimit.Conn // what is read from, if there is a limit

	mu     sync.Mutex
	proc   *Process
	leave  func()
	closed bool
}

// Read reads within the limits.
func (c *conn) Read(p []byte) (int, error) {
	if c.in != nil {
		return c.in.Read(p)
	}
	return c.Conn.Read(p)
}

// onClose is called once for a connection; leave is called when it is closed,
// which may be now.
func (c *conn) onClose(leave func()) {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.leave = leave
	}
	c.mu.Unlock()
	if closed {
		leave()
	}
}

// own hands p to the connection, or closes p if the connection is closed.
func (c *conn) own(p *Process) {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.proc = p
	}
	c.mu.Unlock()
	if closed {
		p.Close()
	}
}

// Close closes the connection, and the Process too.
func (c *conn) Close() error {
	c.mu.Lock()
	p, leave, again := c.proc, c.leave, c.closed
	c.proc, c.leave, c.closed = nil, nil, true
	c.mu.Unlock()
	if again {
		return net.ErrClosed
	}
	if leave != nil {
		leave()
	}
	if p != nil {
		p.Close()
	}
	return c.Conn.Close()
}

// ServerHandshake records who is on the other end. A caller whose process is
// gone, or has already changed, is refused here. A caller without a PID stays
// connected, so that it can be told: FromContext refuses each of its RPCs with
// ErrPIDNamespace.
func (c *Credentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cn, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("the connection is not from Credentials.Listener")
	}
	info := authInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	p, err := c.probe(cn.Conn)
	switch {
	case errors.Is(err, ErrPIDNamespace):
		c.foreignPID.Do(func() { c.log.Warn("callers of another PID namespace are refused", telemetry.Reason, err) })
		info.uid, info.err = foreignUser, err
		if info.budget, err = c.limit(cn, info.uid); err != nil {
			return nil, nil, err
		}
		return cn, info, nil
	case err != nil:
		c.refused(err)
		return nil, nil, err
	}
	info.uid = p.UID()
	if info.budget, err = c.limit(cn, info.uid); err != nil {
		p.Close()
		return nil, nil, err
	}
	p.onEnd = func() { _ = cn.Close() }
	if err := c.watch.add(p); err != nil {
		p.Close()
		return nil, nil, err
	}
	cn.own(p)
	info.proc = p
	return cn, info, nil
}

// refused reports what gRPC would drop. A caller that did not wait for us is
// no news.
func (c *Credentials) refused(err error) {
	const message = "connection refused"
	switch {
	case errors.Is(err, ErrGone):
		c.log.Debug(message, telemetry.Reason, err)
	case errors.Is(err, ErrChanged):
		c.log.Info(message, telemetry.Reason, err)
	default:
		c.log.Warn(message, telemetry.Reason, err)
	}
}

// ClientHandshake refuses: these credentials are for servers.
func (c *Credentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for the server side only")
}

// Info names the protocol.
func (c *Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

// Clone returns c itself: it has no per-connection state.
func (c *Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing: there are no names here.
func (c *Credentials) OverrideServerName(string) error { return nil }

// authInfo has a proc, or the err that stands in its place.
type authInfo struct {
	credentials.CommonAuthInfo
	proc   *Process
	err    error
	uid    uint32
	budget *connlimit.Budget
}

// AuthType names the protocol, as Info does.
func (authInfo) AuthType() string { return "unix-peer" }

// FromContext returns the process that made the RPC whose context ctx is. The
// Process belongs to the connection: do not close it. Call its Check after
// everything that was learnt about it and before acting on it, in each RPC.
func FromContext(ctx context.Context) (*Process, error) {
	info := infoOf(ctx)
	return info.proc, info.err
}
