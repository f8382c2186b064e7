package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

// Time that a call may take when its client set no deadline of its own, or a
// later one, from its headers on: the rest of its message may never come.
const (
	callTimeout = time.Minute
	syncTimeout = 10 * time.Minute
	// backupTimeout bounds for how long whoever reads a backup slowly keeps the
	// store from giving up what it had at its begin.
	backupTimeout = time.Hour
)

// timeouts are those of streams; 0: none.
var timeouts = map[string]time.Duration{
	entryv1.Entry_SyncAuthorizedEntries_FullMethodName: syncTimeout,
	agentv1.Agent_AttestAgent_FullMethodName:           0, // It has one of its own.
	feedv1.Feed_Watch_FullMethodName:                   0, // It ends with the agent's authority.
	healthv1.Health_Watch_FullMethodName:               0,
	operatorv1.Operator_Backup_FullMethodName:          backupTimeout,
	operatorv1.Operator_Drain_FullMethodName:           0, // It has two of its own.
}

// chain is what every call on every listener passes, from the outside in:
// count and time it, map its error, catch a panic, find out who calls and
// whether they may, then the handler.
type chain struct {
	gate    *gate
	limits  *limits
	metrics *callMetrics
	log     *slog.Logger
	// ending has the handlers of agents' streams. Each ends with its stream, or
	// soon after.
	ending sync.WaitGroup
}

// tapIn is gRPC's hook for the headers of a call. The deadline is set here, and not
// in an interceptor, because gRPC reads a call's message before it asks those.
func tapIn(ctx context.Context, info *tap.Info) (context.Context, error) {
	timeout, other := timeouts[info.FullMethodName]
	switch {
	case !other:
		timeout = callTimeout
	case timeout == 0:
		return ctx, nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout) //nolint:gosec // G118: see timed
	return timed{ctx, cancel}, nil
}

// timed is a context with a deadline. Its cancel is called by nobody: gRPC
// cancels the parent at the end of the call, and that is the same.
type timed struct {
	context.Context //nolint:containedctx // it is one
	_               context.CancelFunc
}

// unary is gRPC's interceptor of calls with one message each way.
func (c *chain) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	begin := time.Now()
	resp, err = c.callUnary(ctx, req, info, handler)
	if err = c.finish(ctx, info.FullMethod, begin, err); err != nil {
		return nil, err
	}
	return resp, nil
}

func (c *chain) callUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer rpcerr.Recover(&err)
	budget := budgetOf(ctx)
	budget.Reached()
	budget.Took(sizeOf(req))
	p, err := c.gate.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if err := c.limits.take(ctx, info.FullMethod, p.caller, req); err != nil {
		return nil, err
	}
	if resp, err = handler(policy.NewContext(ctx, p.caller), req); err != nil {
		return nil, err
	}
	return resp, checkUnread(ctx, resp)
}

// stream is gRPC's interceptor of streams.
func (c *chain) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	begin := time.Now()
	err := c.callStream(srv, ss, info, handler)
	return c.finish(ss.Context(), info.FullMethod, begin, err)
}

func (c *chain) callStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer rpcerr.Recover(&err)
	budget := budgetOf(ss.Context())
	budget.Reached()
	p, err := c.gate.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if err := c.limits.take(ss.Context(), info.FullMethod, p.caller, nil); err != nil {
		return err
	}
	serve := func(ctx context.Context) error {
		return handler(srv, &guarded{
			ServerStream: ss,
			ctx:          policy.NewContext(ctx, p.caller),
			gate:         c.gate,
			pass:         p,
			budget:       budget,
		})
	}
	if !p.caller.Is(policy.Agent) {
		return serve(ss.Context())
	}
	ctx, release, err := c.gate.agents.Hold(ss.Context(), p.caller.ID, p.client.chain[0])
	if err != nil {
		return err
	}
	defer release()
	return c.until(ctx, serve)
}

// until serves an agent's stream until its authority ends, even while the
// handler waits for a message: the handler goes on beside this call, and what it
// waits for ends when gRPC is told that the stream has.
func (c *chain) until(ctx context.Context, serve func(context.Context) error) error {
	done := make(chan error, 1)
	c.ending.Go(func() {
		var err error
		defer func() { done <- err }()
		defer rpcerr.Recover(&err)
		err = serve(ctx)
	})
	select {
	case err := <-done:
		// It may have ended by its authority's end, whatever it made of that.
		if ended := endedBy(ctx); ended != nil && err != nil {
			return ended
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// endedBy is why a stream's authority ended, or nil if it has not.
func endedBy(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	if cause, ok := errors.AsType[*rpcerr.Error](context.Cause(ctx)); ok {
		return cause
	}
	return nil
}

// guarded is a stream on which every message, in both directions, asks again
// whether its caller may go on.
type guarded struct {
	grpc.ServerStream
	ctx    context.Context // What grpc.ServerStream.Context returns.
	gate   *gate
	pass   pass
	budget *connlimit.Budget
}

// Context is the stream's, with the caller; it ends with the caller's authority.
func (g *guarded) Context() context.Context { return g.ctx }

// RecvMsg receives a message of a caller who may still send one.
func (g *guarded) RecvMsg(m any) error {
	if err := g.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	g.budget.Took(sizeOf(m))
	return g.check()
}

// SendMsg sends a message to a caller who may still have it.
func (g *guarded) SendMsg(m any) error {
	if err := g.check(); err != nil {
		return err
	}
	return g.ServerStream.SendMsg(m)
}

func (g *guarded) check() error {
	if g.ctx.Err() != nil {
		return context.Cause(g.ctx)
	}
	return g.gate.again(g.pass)
}

// budgetOf is that of the call's connection, or nil.
func budgetOf(ctx context.Context) *connlimit.Budget {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*client); ok {
			return c.budget
		}
	}
	return nil
}

// sizeOf is how many bytes a message took on the wire, if it was encoded as
// everybody does.
func sizeOf(m any) int {
	if m, ok := m.(proto.Message); ok {
		return proto.Size(m)
	}
	return 0
}

// finish maps the error of a call, counts the call, and logs what went wrong for
// debugging.
func (c *chain) finish(ctx context.Context, method string, begin time.Time, err error) error {
	code, elapsed := codes.OK, time.Since(begin)
	if err != nil {
		log := c.log.With(telemetry.Method, method, telemetry.Elapsed, elapsed)
		err = rpcerr.Call(ctx, log, err)
		code = status.Code(err)
		log.DebugContext(ctx, "call ended with an error", telemetry.Code, code.String(), telemetry.Err, err)
	}
	c.metrics.observe(method, code, elapsed)
	return err
}
