package peer

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/telemetry"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Limits keep the processes of one user from taking all of a socket's server.
// Of connections and calls a user gets at most as many as are left for others:
// the first half of all, the next half of the rest. A zero field is no limit.
type Limits struct {
	// Connections that may be open.
	Connections int
	// Calls that may be under way.
	Calls int
	// ConnBytes is how many bytes of messages that were begun and not ended
	// one connection may have, UserBytes how many all of one user's. A call
	// that waits for its message counts 4 KiB.
	ConnBytes, UserBytes int
}

// Reasons that Config.Refused is told.
const (
	RefusedConnection = "connections_of_user"
	RefusedCall       = "calls_of_user"
)

// foreignUser stands for those whose process, and so user, is not known.
const foreignUser = math.MaxUint32

var errConnections = errors.New("the user's processes have as many connections as they may")

// guard is what Limits came to.
type guard struct {
	limits  Limits
	conns   *connlimit.Share[uint32]
	calls   *connlimit.Share[uint32]
	refused func(reason string)
	quiet   rate.Sometimes

	mu    sync.Mutex
	users map[uint32]*account
}

// account is one user's while there are connections.
type account struct {
	bytes *connlimit.Budget
	conns int // guarded by guard.mu
}

func newGuard(l Limits, refused func(string)) *guard {
	g := &guard{limits: l, refused: refused, users: make(map[uint32]*account), quiet: rate.Sometimes{First: 1, Interval: time.Minute}}
	if l.Connections > 0 {
		g.conns = connlimit.NewShare[uint32](l.Connections)
	}
	if l.Calls > 0 {
		g.calls = connlimit.NewShare[uint32](l.Calls)
	}
	return g
}

func (g *guard) refuse(reason string) {
	if g.refused != nil {
		g.refused(reason)
	}
}

// admit counts a connection of a user in, or says that there are too many. What
// it returns is called once when the connection is closed.
func (g *guard) admit(uid uint32) (budget *connlimit.Budget, leave func(), err error) {
	if !g.conns.Take(uid) {
		g.refuse(RefusedConnection)
		return nil, nil, errConnections
	}
	if g.limits.ConnBytes == 0 {
		return nil, func() { g.conns.Give(uid) }, nil
	}
	now := time.Now()
	g.mu.Lock()
	a := g.users[uid]
	if a == nil {
		a = &account{bytes: connlimit.NewBudget(max(g.limits.UserBytes, g.limits.ConnBytes), nil, now)}
		g.users[uid] = a
	}
	a.conns++
	g.mu.Unlock()
	budget = connlimit.NewBudget(g.limits.ConnBytes, a.bytes, now)
	return budget, func() {
		budget.Close()
		g.conns.Give(uid)
		g.mu.Lock()
		defer g.mu.Unlock()
		if a.conns--; a.conns == 0 {
			delete(g.users, uid)
		}
	}, nil
}

// limit counts a connection in before it is served.
func (c *Credentials) limit(cn *conn, uid uint32) (*connlimit.Budget, error) {
	budget, leave, err := c.guard.admit(uid)
	if err != nil {
		c.guard.quiet.Do(func() {
			c.log.Warn("connection refused; this is said once a minute", telemetry.Reason, err, telemetry.PeerUID, uid, telemetry.Limit, c.guard.limits.Connections)
		})
		return nil, err
	}
	cn.onClose(leave)
	if budget != nil {
		cn.in = connlimit.NewConn(cn.Conn, budget)
	}
	return budget, nil
}

// Unary is gRPC's interceptor of calls that are no streams. Their message has
// come whole.
func (c *Credentials) Unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	info := infoOf(ctx)
	if info.budget != nil {
		info.budget.Reached()
		if m, ok := req.(proto.Message); ok {
			info.budget.Took(proto.Size(m))
		}
	}
	if err := c.begin(info.uid); err != nil {
		return nil, err
	}
	defer c.guard.calls.Give(info.uid)
	return handler(ctx, req)
}

// Stream is gRPC's interceptor of streams.
func (c *Credentials) Stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	info := infoOf(ss.Context())
	info.budget.Reached()
	if err := c.begin(info.uid); err != nil {
		return err
	}
	defer c.guard.calls.Give(info.uid)
	return handler(srv, ss)
}

// begin counts a call of a user, or refuses it.
func (c *Credentials) begin(uid uint32) error {
	if c.guard.calls.Take(uid) {
		return nil
	}
	c.guard.refuse(RefusedCall)
	c.guard.quiet.Do(func() {
		c.log.Warn("call refused; this is said once a minute", telemetry.PeerUID, uid, telemetry.Limit, c.guard.limits.Calls)
	})
	return status.Errorf(codes.ResourceExhausted, "the processes of user %d have as many calls under way as they may: %d may be in all, and some are left for others", uid, c.guard.limits.Calls)
}

// infoOf is what is known of the caller; a stranger's if it is nothing.
func infoOf(ctx context.Context) authInfo {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info
		}
	}
	return authInfo{uid: foreignUser, err: errNotOurs}
}

var errNotOurs = errors.New("the context is not of an RPC of a server with peer credentials")
