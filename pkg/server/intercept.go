package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

// callTimeout bounds a unary call whose client set no deadline of its own, or a
// longer one.
const callTimeout = time.Minute

// chain is what every call on every listener passes, from the outside in:
// count and time it, map its error, catch a panic, find out who calls and
// whether they may, then the handler.
type chain struct {
	gate    *gate
	metrics *callMetrics
	log     *slog.Logger
	// ending has the handlers of agents' streams. Each ends with its stream, or
	// soon after.
	ending sync.WaitGroup
}

// unary is gRPC's interceptor of calls with one message each way.
func (c *chain) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err = c.callUnary(ctx, req, info, handler)
	if err = c.finish(ctx, info.FullMethod, begin, err); err != nil {
		return nil, err
	}
	return resp, nil
}

func (c *chain) callUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer recoverTo(&err)
	p, err := c.gate.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handler(policy.NewContext(ctx, p.caller), req)
}

// stream is gRPC's interceptor of streams.
func (c *chain) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	begin := time.Now()
	err := c.callStream(srv, ss, info, handler)
	return c.finish(ss.Context(), info.FullMethod, begin, err)
}

func (c *chain) callStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer recoverTo(&err)
	p, err := c.gate.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	serve := func(ctx context.Context) error {
		return handler(srv, &guarded{
			ServerStream: ss,
			ctx:          policy.NewContext(ctx, p.caller),
			gate:         c.gate,
			pass:         p,
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
		defer recoverTo(&err)
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
	ctx  context.Context // What grpc.ServerStream.Context returns.
	gate *gate
	pass pass
}

// Context is the stream's, with the caller; it ends with the caller's authority.
func (g *guarded) Context() context.Context { return g.ctx }

// RecvMsg receives a message of a caller who may still send one.
func (g *guarded) RecvMsg(m any) error {
	if err := g.ServerStream.RecvMsg(m); err != nil {
		return err
	}
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

// panicError is a handler that panicked.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// recoverTo turns a panic into an error: one request must not end the others.
func recoverTo(err *error) {
	if r := recover(); r != nil {
		*err = &panicError{value: r, stack: debug.Stack()}
	}
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
