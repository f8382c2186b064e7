package fleet

import (
	"context"
	"errors"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/agent/feed"
	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// How an agent that lost its server looks for one, as the real agent does: the
// others at once, spread a little, and with growing pauses when none will do.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
	lostSpread   = time.Second
	nextSpread   = 200 * time.Millisecond
)

// agent is one of them. run is its one goroutine, but for what renews the SVID
// while run follows the stream; link may be loaded by others.
type agent struct {
	fleet  *Fleet
	number int
	id     spiffeid.ID
	prover node.Prover
	cache  *cache
	route  *route.Route

	own     *x509svid.SVID
	renewAt time.Time
	link    atomic.Pointer[link]

	synced bool
	since  time.Time // of the present gap; zero if there is none
}

var errRenewed = errors.New("the agent's SVID was renewed")

// run keeps the agent attested and in sync, until the context ends.
func (a *agent) run(ctx context.Context) error {
	defer a.replace(nil)
	wait, tried := backoffFirst, 0
	for {
		err := a.session(ctx)
		if a.synced {
			a.since = time.Now()
		}
		if errors.Is(err, errRenewed) && ctx.Err() == nil {
			continue // still in sync, for the moment it takes to connect anew
		}
		worked := a.away()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.lost(ctx, err)
		if worked {
			wait, tried = backoffFirst, 0
		}
		pause := nextSpread
		others, _ := a.route.Others(a.route.Leave(), time.Time{})
		_, all := errors.AsType[*route.Error](err)
		switch tried++; {
		case all || tried > others:
			pause, tried = wait, 0
			wait = min(wait*2, backoffMax)
		case worked:
			pause = lostSpread
		}
		select {
		case <-time.After(mathrand.N(pause)): //nolint:gosec // only spreads the attempts
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lost notes the end of a stream, and what it says about the agent's SVID.
func (a *agent) lost(ctx context.Context, err error) {
	a.fleet.stats.note(func(s *Sample) {
		count(&s.Lost, err)
		if errors.Is(err, feed.ErrDiverged) {
			s.Diverged++
		}
	})
	if status.Code(err) == codes.PermissionDenied {
		a.own = nil // attest again
	}
	a.fleet.cfg.Logger.WarnContext(ctx, "agent lost its server", telemetry.AgentID, a.id, telemetry.Err, err)
}

// session attests if need be, connects and follows. It never returns nil.
func (a *agent) session(ctx context.Context) error {
	release, err := a.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	if a.own == nil || time.Now().After(a.own.Certificates[0].NotAfter) {
		if err := a.attest(ctx); err != nil {
			return err
		}
	}
	own := a.own
	l, err := a.dial(ctx, own)
	if err != nil {
		return err
	}
	a.replace(l)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	renewed := make(chan struct{})
	a.fleet.background.Go(func() {
		defer close(renewed)
		if err := a.renew(ctx); err != nil {
			cancel(err)
		}
	})
	err = a.follow(ctx, own, l, func() {
		release()
		a.inSync()
	})
	cancel(nil)
	<-renewed
	if cause := context.Cause(ctx); errors.Is(cause, errRenewed) {
		return cause
	}
	return err
}

// slot bounds how many agents come up for the first time at once. Later they
// are on their own, as in life.
func (a *agent) slot(ctx context.Context) (release func(), err error) {
	if a.own != nil {
		return func() {}, nil
	}
	select {
	case a.fleet.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	held := true
	return func() {
		if held {
			held = false
			<-a.fleet.slots
		}
	}, nil
}

// follow follows the push stream, from server to server as they ask the agent to
// go; or polls.
func (a *agent) follow(ctx context.Context, own *x509svid.SVID, l *link, synced func()) error {
	if a.fleet.cfg.Poll > 0 {
		return feed.Poll(ctx, feed.Config{Conn: l.conn, Cache: &polled{}, OnSynced: synced, PollInterval: a.fleet.cfg.Poll})
	}
	c, asked := a.config(l, synced)
	stream, err := feed.Open(ctx, c)
	for err == nil {
		var next *moved
		staying, leave := context.WithCancel(ctx)
		going := make(chan struct{})
		a.fleet.background.Go(func() {
			defer close(going)
			select {
			case <-asked:
				next = a.move(ctx, staying, own, l, stream)
			case <-staying.Done():
			}
		})
		err = stream.Follow()
		leave()
		<-going
		if next != nil {
			stream, l, asked, err = next.stream, next.link, next.asked, nil
			a.inSync()
		}
	}
	return err
}

// config is the stream's on a connection; asked gets a value when the server
// asks the agent to go.
func (a *agent) config(l *link, synced func()) (c feed.Config, asked <-chan struct{}) {
	once := make(chan struct{}, 1)
	c = feed.Config{
		Conn: watched{l}, Cache: connected{a.cache, l.wire}, Version: "fleet", OnSynced: synced,
		OnDrain: func(string) {
			select {
			case once <- struct{}{}:
			default:
			}
		},
	}
	c.Alternatives, c.LastResort = a.route.Others(l.conn.Address, a.lastSync())
	return c, once
}

// lastSync is when the agent was last in sync; zero if it never was.
func (a *agent) lastSync() time.Time {
	if a.synced && a.since.IsZero() {
		return time.Now()
	}
	return a.since
}

// moved is a stream that another server took over.
type moved struct {
	stream *feed.Stream
	link   *link
	asked  <-chan struct{}
}

// move hands the stream over to another server, and stays while there is none.
// It gives up when staying ends; ctx is the life of the next stream.
func (a *agent) move(ctx, staying context.Context, own *x509svid.SVID, l *link, s *feed.Stream) *moved { //nolint:revive // the first ctx is the usual one
	for wait := backoffFirst; ; wait = min(wait*2, backoffMax) {
		a.route.Blame(l.conn.Address)
		next, err := a.handOver(ctx, staying, own, l, s)
		if err == nil {
			a.replace(next.link)
			a.fleet.stats.note(func(s *Sample) { s.Moved++ })
			return next
		}
		select {
		case <-time.After(mathrand.N(wait)): //nolint:gosec // only spreads the attempts
		case <-staying.Done():
			return nil
		}
	}
}

func (a *agent) handOver(ctx, staying context.Context, own *x509svid.SVID, from *link, s *feed.Stream) (*moved, error) { //nolint:revive // as move
	l, err := a.dialOther(staying, own, from.conn.Address)
	if err != nil {
		return nil, err
	}
	c, asked := a.config(l, nil)
	stream, err := s.HandOver(ctx, c)
	if err != nil {
		a.route.Blame(l.conn.Address)
		l.close()
		return nil, err
	}
	a.route.Use(l.conn.Address)
	return &moved{stream, l, asked}, nil
}

// inSync and away keep count. They are called by the session's goroutine.
func (a *agent) inSync() {
	if !a.since.IsZero() {
		gap := time.Since(a.since)
		a.since = time.Time{}
		a.fleet.stats.note(func(s *Sample) { s.Gaps = append(s.Gaps, gap) })
	}
	if !a.synced {
		a.synced = true
		a.fleet.count(1)
	}
}

func (a *agent) away() (worked bool) {
	if !a.synced {
		return false
	}
	a.synced = false
	a.fleet.count(-1)
	return true
}

// renew waits until the SVID is to be replaced, and returns errRenewed when it
// was.
func (a *agent) renew(ctx context.Context) error {
	wait := backoffFirst
	for at := a.renewAt; ; {
		select {
		case <-time.After(time.Until(at)):
		case <-ctx.Done():
			return ctx.Err()
		}
		err := a.attest(ctx)
		if err == nil {
			a.fleet.stats.note(func(s *Sample) { s.Renewed++ })
			return errRenewed
		}
		at = time.Now().Add(mathrand.N(wait)) //nolint:gosec // only spreads the attempts
		wait = min(wait*2, backoffMax)
	}
}

// sourceOf gives each agent a loopback address of its own, as each is a machine
// of its own: 127.16.0.1 and on.
func sourceOf(i int) net.IP {
	return net.IP(new(big.Int).Add(big.NewInt(0x7F100001), big.NewInt(int64(i))).Bytes())
}
