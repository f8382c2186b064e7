package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/pkg/connlimit"
)

// entrant is a connection that is on its way in, and stays one: whoever closes
// it gives its place back.
type entrant struct {
	net.Conn
	door *door
	raw  net.Addr
	// seen is who it is from as far as is known without reading from it; zero
	// for a proxy's.
	seen netip.Prefix

	mu     sync.Mutex
	place  interface{ Leave() }
	closed bool
	end    time.Time // of its life; zero before the handshake
}

func (d *door) entrant(raw net.Conn) *entrant {
	e := &entrant{Conn: raw, door: d, raw: raw.RemoteAddr()}
	e.seen, _ = sourceOfAddr(e.raw)
	if len(d.proxies) == 0 {
		return e
	}
	policy := proxyproto.REJECT
	if d.trusted(e.raw) {
		policy, e.seen = proxyproto.USE, netip.Prefix{}
	}
	e.Conn = proxyproto.NewConn(raw, proxyproto.WithPolicy(policy), proxyproto.SetReadHeaderTimeout(proxyHeaderTimeout))
	return e
}

// enter takes a place in a pool of sources and gives back the one it had.
func (e *entrant) enter(pool *connlimit.Pool[netip.Prefix], source netip.Prefix, because string) error {
	place, err := pool.Enter(time.Now(), source, func() { e.evicted(because) })
	if err != nil {
		return err
	}
	e.move(place)
	return nil
}

func (e *entrant) move(place interface{ Leave() }) {
	e.mu.Lock()
	old := e.place
	if e.closed {
		old = place
	} else {
		e.place = place
	}
	e.mu.Unlock()
	if old != nil {
		old.Leave()
	}
}

func (e *entrant) evicted(because string) {
	if !e.door.stopping.Load() {
		e.door.refuse(because, e.raw, errEvicted)
	}
	_ = e.Close() // It had to go.
}

var errEvicted = errors.New("the connection had to make room for another")

// Close closes the connection and gives its place back.
func (e *entrant) Close() error {
	e.mu.Lock()
	place, again := e.place, e.closed
	e.place, e.closed = nil, true
	e.mu.Unlock()
	if again {
		return net.ErrClosed
	}
	if place != nil {
		place.Leave()
	}
	return e.Conn.Close()
}

// SetDeadline is gRPC's, which sets one for the handshake and takes it away
// afterwards: then the connection's own end is what remains.
func (e *entrant) SetDeadline(t time.Time) error {
	if !t.IsZero() {
		return e.Conn.SetDeadline(t)
	}
	e.mu.Lock()
	end := e.end
	e.mu.Unlock()
	return errors.Join(e.Conn.SetWriteDeadline(t), e.Conn.SetReadDeadline(end))
}

// live sets the end of the connection's life.
func (e *entrant) live(until time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.end = until
}

// announced finds out who the connection is from, which may take a PROXY
// protocol header, and holds that source to its limit.
func (e *entrant) announced() (netip.Prefix, error) {
	proxied, ok := e.Conn.(*proxyproto.Conn)
	if !ok {
		return e.seen, nil
	}
	// It reads the header; an error of that is every later read's.
	if _, err := proxied.Read(nil); err != nil {
		return netip.Prefix{}, fmt.Errorf("reading a PROXY protocol header: %w", err)
	}
	source, ok := sourceOfAddr(proxied.RemoteAddr())
	if !ok { // Limits are by the source, and a header may name any kind.
		return netip.Prefix{}, fmt.Errorf("the source %s is not a TCP address", proxied.RemoteAddr().Network())
	}
	if source == e.seen {
		return source, nil
	}
	return source, e.enter(e.door.handshakes, source, becauseHandshakes)
}

// welcome gives a connection whose handshake is done the place of its kind, and
// returns how it is limited from then on.
func (e *entrant) welcome(conn net.Conn, source netip.Prefix, chain []*x509.Certificate) (net.Conn, *connlimit.Budget, error) {
	now := time.Now()
	if len(chain) == 0 {
		if err := e.enter(e.door.strangers, source, becauseStrangers); err != nil {
			return nil, nil, err
		}
		e.live(now.Add(strangerAge))
		return &strangerConn{Conn: conn, left: strangerBytes}, nil, nil
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return nil, nil, err // It was verified, so this does not happen.
	}
	pool, size := e.door.callers, callerBytes
	if isAgent(id) {
		pool, size = e.door.agents, agentBytes
	}
	place, err := pool.Enter(now, id, func() { e.evicted(becauseCaller) })
	if err != nil {
		return nil, nil, err
	}
	budget, leave := e.door.budgets.enter(id, size, now)
	e.move(budgeted{place, leave})
	e.live(chain[0].NotAfter.Add(endGrace))
	return connlimit.NewConn(conn, budget), budget, nil
}

// welcomeReason is why welcome refuses.
func welcomeReason(chain []*x509.Certificate, err error) string {
	switch {
	case len(chain) > 0:
		return becauseFiles
	case errors.Is(err, connlimit.ErrKeyFull):
		return becauseSourceStrangers
	}
	return becauseStrangers
}
