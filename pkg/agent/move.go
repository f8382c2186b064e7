package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/agent/feed"
	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/credence-id/credence/pkg/telemetry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// lostSpread is over how long agents spread their arrival at the other servers
// when one is lost with all its agents at the same moment. A server is found
// within failoverWait all the same.
const lostSpread = time.Second

// hurry says that another server is to be tried now, and after which pause:
// there is one pass over all of them before the agent backs off. The server in
// use is passed over then. tried counts those that were tried in this pass.
func (a *Agent) hurry(err error, worked bool, tried *int) (pause time.Duration, more bool) {
	if worked {
		*tried = 0
	}
	_, all := errors.AsType[*route.Error](err)
	if !all && !elsewhere(err) {
		return 0, false
	}
	*tried++
	others, _ := a.route.Others(a.route.Leave(), time.Time{})
	if all || *tried > others {
		*tried = 0
		return 0, false
	}
	if a.caughtUp.Load() {
		return rand.N(lostSpread), true //nolint:gosec // only spreads the attempts
	}
	return 0, true // It was not let in, for which there are no such moments.
}

// elsewhere says whether another server may do what this one did not.
func elsewhere(err error) bool {
	if errors.Is(err, feed.ErrDiverged) {
		return true // What it has said in full, it would say again.
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.ResourceExhausted, codes.DataLoss:
		return true
	}
	return false
}

// lost notes when the agent's cache has ceased to follow the server.
func (a *Agent) lost(now time.Time) {
	a.lostAt.Store(&now)
	if a.pushed.Load() {
		a.syncing(now)
	}
}

// followed is a push stream and the connection that it is on.
type followed struct {
	*feed.Stream
	link *link
	// asked has the reason when the server asks the agent to go.
	asked <-chan string
}

// feed configures the push stream on a connection.
func (a *Agent) feed(ctx context.Context, l *link) (c feed.Config, asked <-chan string) {
	reasons := make(chan string, 1)
	c = feed.Config{
		Conn: l.conn, Cache: (*sink)(a), Version: a.version, PollInterval: a.config.Agent.Experimental.SyncInterval,
		OnSynced: func() { a.synced(ctx) },
		OnDrain: func(reason string) {
			select {
			case reasons <- reason:
			default: // It was asked already.
			}
		},
	}
	c.Alternatives, c.LastResort = a.route.Others(l.conn.Address, a.lastSync(time.Now()))
	return c, reasons
}

// followOn follows the push stream, from server to server as they ask the agent
// to go, or polls a server that has none.
func (a *Agent) followOn(ctx context.Context, own *nodeSVID, l *link) error {
	c, asked := a.feed(ctx, l)
	a.pushed.Store(true)
	stream, err := feed.Open(ctx, c)
	if status.Code(err) == codes.Unimplemented {
		a.pushed.Store(false)
		a.log.InfoContext(ctx, "the server has no push stream: polling it as SPIRE's agents do", telemetry.Address, l.conn.Address)
		return feed.Poll(ctx, c)
	}
	if err != nil {
		return err
	}
	s := &followed{stream, l, asked}
	for {
		next, err := a.stay(ctx, own, s)
		if err != nil {
			return err
		}
		s = next
	}
}

// stay follows a stream until it ends. When the server asks the agent to go and
// another one has taken the stream over, that is returned; ctx is its life.
func (a *Agent) stay(ctx context.Context, own *nodeSVID, s *followed) (next *followed, err error) {
	staying, leave := context.WithCancel(ctx)
	var going sync.WaitGroup
	going.Go(func() {
		select {
		case reason := <-s.asked:
			next = a.move(ctx, staying, own, s, reason)
		case <-staying.Done():
		}
	})
	err = s.Follow()
	leave()
	going.Wait()
	if next != nil {
		return next, nil
	}
	return nil, err
}

// move hands the stream over to another server, and stays while there is none.
// It gives up when staying ends. ctx is the life of the next stream.
func (a *Agent) move(ctx, staying context.Context, own *nodeSVID, s *followed, reason string) *followed { //nolint:revive // the first ctx is the usual one
	from := s.link.conn.Address
	a.log.InfoContext(ctx, "the server asks the agent to go to another one", telemetry.Address, from, telemetry.Reason, reason)
	var backoff backoff
	tried := 0
	for {
		a.route.Blame(from)
		next, err := a.handOver(ctx, staying, own, s)
		if err == nil {
			a.replaceLink(ctx, next.link)
			a.log.InfoContext(ctx, "in sync with another server", telemetry.Address, next.link.conn.Address, telemetry.Old, from)
			return next
		}
		if staying.Err() != nil {
			return nil
		}
		_, all := errors.AsType[*route.Error](err)
		others, _ := a.route.Others(from, time.Time{})
		if tried++; !all && tried < others {
			continue
		}
		tried = 0
		pause := a.pause(backoff.next(err, false, false))
		a.log.WarnContext(ctx, "no other server takes this agent: it stays", telemetry.Address, from, telemetry.Err, err, telemetry.Retry, pause)
		select {
		case <-time.After(pause):
		case <-staying.Done():
			return nil
		}
	}
}

// handOver is one attempt of move.
func (a *Agent) handOver(ctx, staying context.Context, own *nodeSVID, s *followed) (*followed, error) { //nolint:revive // as move
	l, err := a.dialOther(staying, own, s.link.conn.Address)
	if err != nil {
		return nil, err
	}
	c, asked := a.feed(ctx, l)
	stream, err := s.HandOver(ctx, c)
	if err != nil {
		a.route.Blame(l.conn.Address)
		a.closing(ctx, l)
		return nil, err
	}
	a.route.Use(l.conn.Address)
	return &followed{stream, l, asked}, nil
}
