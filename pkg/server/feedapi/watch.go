package feedapi

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Limits of Open.
const (
	openTimeout     = 10 * time.Second
	maxOpenBundles  = 4096
	maxAgentVersion = 255
)

// conn is the gRPC side of one stream.
type conn = grpc.BidiStreamingServer[feedv1.WatchRequest, feedv1.WatchResponse]

// watch is one call of Watch.
type watch struct {
	hub   *Hub
	conn  conn
	agent spiffeid.ID
	// opened gets the first message.
	opened chan *feedv1.Open
	// received gets why nothing more is received.
	received chan error
	// acks is closed once st is set, which the receiver waits for.
	attached chan struct{}
	st       *stream
}

// Watch serves one agent's stream until the stream's context ends (whose cause
// says why, see agentapi.Authenticator), the agent leaves, a newer stream takes
// over or the server stops.
//
// Receiving and sending have goroutines of their own, because both can block
// for as long as the agent pleases, while the end of the agent's authority must
// end the call at once: when Watch returns, gRPC cancels both.
func (h *Hub) Watch(c conn) error {
	caller, ok := policy.FromContext(c.Context())
	if !ok || !caller.Is(policy.Agent) {
		return rpcerr.New(codes.PermissionDenied, "the feed is for agents")
	}
	w := &watch{
		hub: h, conn: c, agent: caller.ID,
		opened:   make(chan *feedv1.Open, 1),
		received: make(chan error, 1),
		attached: make(chan struct{}),
	}
	if !h.start(func() { w.received <- w.receive() }) {
		return errStopping
	}
	return w.serve(c.Context())
}

// start runs f in a goroutine that Stop waits for.
func (h *Hub) start(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	h.running.Go(f)
	return true
}

func (w *watch) serve(ctx context.Context) error {
	// 1. What does the agent hold?
	open, err := w.awaitOpen(ctx)
	if err != nil || open == nil {
		return err
	}
	// 2. Can this server tell it what it may have?
	if err := w.hub.loaded(ctx, open); err != nil {
		return err
	}
	known, err := w.hub.catchUp(ctx, w.agent, open)
	if err != nil {
		return err
	}
	// 3. From here on changes are marked.
	w.st = newStream(w.agent, address(ctx), open, time.Now())
	if err := w.hub.attach(ctx, w.st); err != nil {
		return err
	}
	defer w.hub.detach(w.st)
	defer w.st.end(errLeft)
	close(w.attached)
	// 4. What differs, then what changes.
	return w.follow(ctx, open, known)
}

// awaitOpen returns nil, nil when the agent left without a word.
func (w *watch) awaitOpen(ctx context.Context) (*feedv1.Open, error) {
	timer := time.NewTimer(openTimeout)
	defer timer.Stop()
	select {
	case open := <-w.opened:
		return open, nil
	case err := <-w.received:
		return nil, err
	case <-w.hub.stopping:
		return nil, errStopping
	case <-timer.C:
		return nil, rpcerr.New(codes.DeadlineExceeded, "open: the first message did not come within %s", openTimeout)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (w *watch) follow(ctx context.Context, open *feedv1.Open, known bool) error {
	s := &sender{hub: w.hub, st: w.st, send: func(m *feedv1.WatchResponse) error { return w.send(ctx, m) }}
	sent := make(chan error, 1)
	begin := func(f func() error) bool {
		return w.hub.start(func() {
			var err error
			defer func() { sent <- err }()
			defer rpcerr.Recover(&err)
			err = f()
		})
	}

	sending := begin(func() error {
		if err := s.first(ctx, open, known); err != nil {
			return err
		}
		return s.drain(ctx)
	})
	for {
		wake := w.st.wake
		if sending {
			wake = nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.st.ended:
			return w.st.reason()
		case err := <-w.received:
			return err
		case err := <-sent:
			if err != nil {
				return err
			}
			sending = false
		case <-wake:
			sending = begin(func() error { return s.drain(ctx) })
		}
	}
}

// send refuses when the stream is over, whatever the agent does with it.
func (w *watch) send(ctx context.Context, m *feedv1.WatchResponse) error {
	select {
	case <-w.st.ended:
		return w.st.reason()
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
	}
	w.hub.metrics.messages.Inc()
	return w.conn.Send(m)
}

// receive hands Open over and takes in Acks until the agent leaves, which is
// not an error.
func (w *watch) receive() (err error) {
	defer rpcerr.Recover(&err)
	open, err := w.recv()
	if err != nil || open == nil {
		return err
	}
	if open.GetOpen() == nil {
		return malformed("the first message must be open")
	}
	if err := checkOpen(open.GetOpen()); err != nil {
		return err
	}
	w.opened <- open.GetOpen()
	ctx := w.conn.Context()
	select {
	case <-w.attached:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.recordVersion(ctx, open.GetOpen().GetAgentVersion())
	for {
		m, err := w.recv()
		if err != nil || m == nil {
			return err
		}
		if m.GetAck() == nil {
			return malformed("only acks may follow open")
		}
		w.st.ack(store.Revision(m.GetAck().GetRevision()))
	}
}

// recv returns nil, nil when the agent has nothing more to say.
func (w *watch) recv() (*feedv1.WatchRequest, error) {
	m, err := w.conn.Recv()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	return m, err
}

// recordVersion is for the operator's lists only, so a failure ends nothing.
func (w *watch) recordVersion(ctx context.Context, version string) {
	if version == "" {
		return
	}
	if err := w.hub.cfg.SetVersion(ctx, w.agent, version); err != nil && ctx.Err() == nil {
		w.hub.cfg.Logger.WarnContext(ctx, "agent's version was not recorded", telemetry.AgentID, w.agent, telemetry.Err, err)
	}
}

func checkOpen(o *feedv1.Open) error {
	switch {
	case len(o.GetBuckets()) != 0 && len(o.GetBuckets()) != feedv1.Buckets:
		return malformed("open.buckets: %d sums, either none or %d", len(o.GetBuckets()), feedv1.Buckets)
	case len(o.GetBundles()) > maxOpenBundles:
		return malformed("open.bundles: %d, at most %d", len(o.GetBundles()), maxOpenBundles)
	case len(o.GetAgentVersion()) > maxAgentVersion:
		return malformed("open.agent_version: %d bytes, at most %d", len(o.GetAgentVersion()), maxAgentVersion)
	}
	return nil
}

func malformed(format string, args ...any) error {
	return rpcerr.New(codes.InvalidArgument, format, args...)
}

func address(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
