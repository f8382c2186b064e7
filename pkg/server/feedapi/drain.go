package feedapi

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

// ErrCalledOff is returned by Drain when Undrain ended it.
var ErrCalledOff error = rpcerr.New(codes.Aborted, "the drain was called off")

var errDraining = rpcerr.New(codes.Unavailable, "the server is being drained: go to another one")

// reasonDrain is what agents write to their logs.
const reasonDrain = "the server is being drained"

// Drain asks the agents to go to other servers, spread over a time so that
// these are not stampeded, and returns nil when no stream is left of an agent
// that could go. Agents without another server stay, and are not waited for.
//
// From now on, after Drain has returned too and until Undrain, agents that have
// another server are let in only when none of these takes them, and asked to go
// again. All other calls go on.
//
// progress, which may be nil, is told how many agents are still to go: at the
// start and each time that has changed, by the caller's goroutine. Several
// Drains may run at once. The error is the context's (wrapped, with how many
// are left), ErrCalledOff, or that the server is stopping.
func (h *Hub) Drain(ctx context.Context, over time.Duration, progress func(left int)) error {
	d, err := h.beginDrain()
	if err != nil {
		return err
	}
	defer func() { h.forgive(d.tell) }()
	h.drainingChanged()
	h.cfg.Logger.InfoContext(ctx, "draining: agents are asked to go to other servers",
		telemetry.Count, len(d.tell), telemetry.Elapsed, over)
	begin, all, said := time.Now(), len(d.tell), -1
	for {
		left, changed := h.leaving()
		if left != said && progress != nil {
			progress(left)
		}
		said = left
		if left == 0 {
			h.cfg.Logger.InfoContext(ctx, "drained: no agent is left that has another server", telemetry.Elapsed, time.Since(begin))
			return nil
		}
		var next <-chan time.Time
		if told := all - len(d.tell); told < all {
			next = time.After(time.Until(begin.Add(over * time.Duration(told) / time.Duration(all))))
		}
		select {
		case <-next:
			h.ask(d.tell[0])
			d.tell = d.tell[1:]
		case <-changed:
		case <-d.calledOff:
			return ErrCalledOff
		case <-h.stopping:
			return errStopping
		case <-ctx.Done():
			return fmt.Errorf("draining, %d agents are left: %w", left, context.Cause(ctx))
		}
	}
}

// Undrain takes Drain back: agents are let in as before. Those that were asked
// to go may still go.
func (h *Hub) Undrain() {
	h.mu.Lock()
	draining := h.calledOff != nil
	if draining {
		close(h.calledOff)
		h.calledOff = nil
	}
	for _, s := range h.streams {
		if s.stuck {
			s.stuck = false
			h.count(s, 1)
		}
	}
	h.mu.Unlock()
	if draining {
		h.cfg.Logger.Info("the drain was called off: agents are let in again")
		h.drainingChanged()
	}
}

func (h *Hub) drainingChanged() {
	if h.cfg.OnDraining != nil {
		h.cfg.OnDraining()
	}
}

// Draining says whether the server is being drained, or was and waits for its
// end.
func (h *Hub) Draining() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calledOff != nil
}

// drain is one call of Drain.
type drain struct {
	tell      []spiffeid.ID // in random order
	calledOff <-chan struct{}
}

func (h *Hub) beginDrain() (*drain, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil, errStopping
	}
	if h.calledOff == nil {
		h.calledOff = make(chan struct{})
	}
	d := &drain{calledOff: h.calledOff}
	for _, s := range h.streams {
		if s.movable() {
			d.tell = append(d.tell, s.agent)
			h.unasked[s.agent] = struct{}{}
		}
	}
	rand.Shuffle(len(d.tell), func(i, j int) { d.tell[i], d.tell[j] = d.tell[j], d.tell[i] }) //nolint:gosec // only spreads the load
	return d, nil
}

// ask asks an agent to go, on the stream it has now.
func (h *Hub) ask(agent spiffeid.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.unasked, agent)
	if s := h.streams[agent]; s != nil {
		s.mark(func(p *pending) { p.leave = true })
	}
}

// forgive makes agents that were not asked like all others.
func (h *Hub) forgive(agents []spiffeid.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range agents {
		delete(h.unasked, a)
	}
}

// leaving is how many streams there are whose agents could go, and a channel
// that is closed when that has changed.
func (h *Hub) leaving() (int, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.movable, h.moved
}

// count adds to the streams whose agents could go. It is called with mu held.
func (h *Hub) count(s *stream, by int) {
	if s == nil || !s.movable() {
		return
	}
	h.movable += by
	close(h.moved)
	h.moved = make(chan struct{})
}

// admit says whether a stream may begin while the server is drained. It is
// called with mu held. Agents whose turn to go has not come may renew their
// SVIDs until then, for which they open a stream.
func (h *Hub) admit(s *stream) error {
	_, later := h.unasked[s.agent]
	switch {
	case h.calledOff == nil || later:
	case s.alternatives > 0 && !s.lastResort:
		return errDraining
	case s.alternatives > 0:
		s.stuck = true
		s.mark(func(p *pending) { p.leave = true })
	}
	return nil
}

// movable says that the agent has another server to go to, as far as it knows.
// It is called with the hub's mu held.
func (s *stream) movable() bool { return s.alternatives > 0 && !s.stuck }

// leave asks the agent to go.
func (s *sender) leave() error {
	m := &feedv1.WatchResponse{Step: &feedv1.WatchResponse_Drain{Drain: &feedv1.Drain{Reason: reasonDrain}}}
	if err := s.send(m); err != nil {
		return fmt.Errorf("sending drain: %w", err)
	}
	s.hub.metrics.drains.Inc()
	return nil
}
