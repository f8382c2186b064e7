package route

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// firstLead is the time a candidate has before the next one is tried beside it.
// Each next one has twice the time of the one before: an address that leads
// nowhere costs little, and servers that are slow because the whole fleet comes
// at once do not get several times the fleet.
const firstLead = 300 * time.Millisecond

// attempt is how one candidate did.
type attempt struct {
	candidate candidate
	conn      *Conn
	err       error
}

// race connects to the first candidate that answers. The next one is tried when
// those before it have failed, or have had their lead.
//
// gRPC's own pick_first staggers too, and is not used: it begins again at the
// head of its list after a loss, where the server that was lost may be; it
// knows of no failure but that of a connection, so a server that is drained or
// behind would be chosen again; and it reconnects under calls without telling,
// while our feed has to know which server it is at. So each attempt is a gRPC
// connection of its own, to one address.
func (r *Route) race(ctx context.Context, try []candidate, secure func() Security) (*Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	done := make(chan attempt, len(try))
	var errs []error
	started, lead := 0, firstLead
	start := func() {
		if started < len(try) {
			c := try[started]
			running.Go(func() {
				conn, err := r.dial(ctx, c, secure())
				done <- attempt{c, conn, err}
			})
			started++
		}
	}
	start()
	for len(errs) < len(try) {
		var next <-chan time.Time
		if started < len(try) {
			next = time.After(lead)
		}
		select {
		case a := <-done:
			if a.err == nil {
				cancel()
				running.Wait()
				closeAll(done)
				r.overtaken(try, a.candidate)
				return a.conn, nil
			}
			errs = append(errs, a.err)
			if !errors.Is(ctx.Err(), context.Canceled) { // It was given its time.
				r.Blame(a.candidate.address)
			}
			start()
		case <-next:
			start()
			lead *= 2
		}
	}
	return nil, failed(errs...)
}

// overtaken blames those that had a lead on the winner, and did not answer.
func (r *Route) overtaken(try []candidate, winner candidate) {
	for _, c := range try[:slices.Index(try, winner)] {
		r.Blame(c.address)
	}
}

// closeAll closes what came in behind the first.
func closeAll(done <-chan attempt) {
	for {
		select {
		case a := <-done:
			if a.conn != nil {
				_ = a.conn.Close() // It was not used.
			}
		default:
			return
		}
	}
}

// dial connects to one candidate.
func (r *Route) dial(ctx context.Context, c candidate, s Security) (*Conn, error) {
	options := slices.Clone(r.cfg.Options)
	options = append(options, grpc.WithTransportCredentials(s.Credentials()), grpc.WithAuthority(c.authority), grpc.WithDisableServiceConfig())
	if !c.proxied {
		options = append(options, grpc.WithNoProxy())
	}
	dial := r.cfg.Dial
	if dial == nil && !c.proxied { // gRPC asks the proxy itself
		dial = dialTCP
	}
	if dial != nil {
		options = append(options, grpc.WithContextDialer(dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+url.PathEscape(c.address), options...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the server at %s: %w", c.address, err)
	}
	if err := await(ctx, conn); err != nil {
		err = s.Explain(fmt.Errorf("connecting to the server at %s: %w", c.String(), err))
		return nil, errors.Join(err, conn.Close())
	}
	return &Conn{ClientConn: conn, Address: c.address, Security: s}, nil
}

// String names the candidate for the log.
func (c candidate) String() string {
	if c.authority == c.address {
		return c.address
	}
	host, _, _ := net.SplitHostPort(c.authority) // it was resolved
	return fmt.Sprintf("%s (%s)", c.address, host)
}

// await waits until the connection serves calls or has failed once.
func await(ctx context.Context, conn *grpc.ClientConn) error {
	conn.Connect()
	for begun := false; ; {
		state := conn.GetState()
		switch {
		case state == connectivity.Ready:
			return nil
		case state == connectivity.Connecting:
			begun = true
		case state != connectivity.Idle || begun: // Idle again: it was closed at once.
			return ErrUnreachable
		}
		if !conn.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
	}
}

// sortByBlame is called with mu held.
func (r *Route) sortByBlame(cs []candidate) {
	slices.SortStableFunc(cs, func(a, b candidate) int {
		return cmp.Compare(r.blamed[a.address].UnixNano(), r.blamed[b.address].UnixNano())
	})
}
