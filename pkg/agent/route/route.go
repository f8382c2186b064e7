package route

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

const (
	// ConnectTimeout bounds one Connect: the names, and dialling and handshakes
	// of all candidates.
	ConnectTimeout = 10 * time.Second
	// blameFor is for how long a server that has failed is passed over while
	// there are others: long enough for a restart, and short enough for it to get
	// its share when the next one is restarted.
	blameFor = time.Minute
	// maxCandidates bounds how many addresses one Connect tries.
	maxCandidates = 32
)

// Config of a Route. Addresses is required.
type Config struct {
	// Addresses are host:port of the servers. A host is an IP address or a DNS
	// name, and every address it has is a server.
	Addresses []string
	// Options go to each connection, beside what secures it.
	Options []grpc.DialOption
	// Log defaults to nowhere.
	Log *slog.Logger
	// Lookup defaults to the machine's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial, when not nil, takes the place of TCP, and of Lookup: hosts are passed
	// to it as they are.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Security is what one attempt to connect is secured with.
type Security interface {
	// Credentials are used for this attempt alone.
	Credentials() credentials.TransportCredentials
	// Explain adds to the error of an attempt what is known of its handshake.
	Explain(err error) error
}

// Conn is a connection to one server. The caller closes it.
type Conn struct {
	*grpc.ClientConn
	// Address is the server's, IP address and port where it has these.
	Address string
	// Security is what the attempt was secured with.
	Security Security
}

// Route is which server an agent goes to. Make it with New. Its methods may be
// called concurrently.
type Route struct {
	cfg Config

	mu sync.Mutex
	// guarded by mu:
	current string                  // address of the server in use; "": none
	blamed  map[string]time.Time    // address → when it last failed
	found   map[string][]netip.Addr // host → what it stood for when last asked
	last    []candidate             // the candidates of the last Connect
}

// candidate is a server that could be connected to.
type candidate struct {
	address string // what is dialled
	// authority is the server as it was configured, for what stands between: a
	// balancer that goes by TLS's server name.
	authority string
	// proxied: the machine's proxy, which knows the name, connects to it.
	proxied bool
}

// otherWay says whether both are of one name, and of different versions of IP.
func (c candidate) otherWay(o candidate) bool {
	if c.authority != o.authority {
		return false
	}
	a, err := netip.ParseAddrPort(c.address)
	if err != nil {
		return false
	}
	b, err := netip.ParseAddrPort(o.address)
	return err == nil && a.Addr().Is4() != b.Addr().Is4()
}

// New returns a Route that has chosen no server yet; it resolves nothing.
func New(cfg Config) *Route {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Lookup == nil {
		cfg.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return &Route{cfg: cfg, blamed: map[string]time.Time{}, found: map[string][]netip.Addr{}}
}

// Connect connects to the server in use, or to another one if there is none or
// it does not answer; that one is in use then. It returns when the connection
// serves calls. secure is called for each attempt. The error is an *Error: all
// servers have been tried.
func (r *Route) Connect(ctx context.Context, secure func() Security) (*Conn, error) {
	conn, err := r.connect(ctx, "", secure)
	if err == nil {
		r.Use(conn.Address)
	}
	return conn, err
}

// Elsewhere is Connect to any server but the one at an address, and changes
// nothing about which one is in use; see Use.
func (r *Route) Elsewhere(ctx context.Context, but string, secure func() Security) (*Conn, error) {
	return r.connect(ctx, but, secure)
}

// Use makes the server at an address the one in use.
func (r *Route) Use(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = address
}

// Leave blames the server in use, and returns its address, or "" when there is
// none.
func (r *Route) Leave() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := r.current
	if left != "" {
		r.blame(left, time.Now())
	}
	return left
}

// Blame says that the server at an address has failed, whatever the connection
// to it, or is being drained: the next Connect prefers others for a while.
func (r *Route) Blame(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blame(address, time.Now())
}

func (r *Route) blame(address string, now time.Time) {
	for a, at := range r.blamed {
		if now.Sub(at) > blameFor {
			delete(r.blamed, a)
		}
	}
	r.blamed[address] = now
	if r.current == address {
		r.current = ""
	}
}

// Others says how many servers there are beside the one at an address, by the
// last Connect, and whether none of these is one to go to: all have failed since
// a time. The addresses that the same name has in the other version of IP are
// not counted: they are other ways to the same servers.
func (r *Route) Others(address string, since time.Time) (n int, none bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, none := time.Now(), true
	var at candidate
	if i := slices.IndexFunc(r.last, func(c candidate) bool { return c.address == address }); i >= 0 {
		at = r.last[i]
	}
	for _, c := range r.last {
		if c.address == address || c.otherWay(at) {
			continue
		}
		n++
		none = none && r.isBlamed(c.address, now) && !r.blamed[c.address].Before(since)
	}
	return n, none && n > 0
}

func (r *Route) isBlamed(address string, now time.Time) bool {
	at, ok := r.blamed[address]
	return ok && now.Sub(at) < blameFor
}

func (r *Route) connect(ctx context.Context, but string, secure func() Security) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	all, err := r.resolve(ctx)
	if err != nil {
		return nil, err
	}
	try := r.order(all, but, time.Now())
	if len(try) == 0 {
		return nil, failed(fmt.Errorf("there is no server beside %s", but))
	}
	return r.race(ctx, try, secure)
}

// order is the order in which candidates are tried: the one in use, the others
// at random so that a fleet spreads, and last those that have failed, the one
// that did so first before the others.
func (r *Route) order(all []candidate, but string, now time.Time) []candidate {
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) //nolint:gosec // only spreads the fleet
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = all
	var first, next, last []candidate
	for _, c := range all {
		switch {
		case c.address == but:
		case c.address == r.current:
			first = append(first, c)
		case r.isBlamed(c.address, now):
			last = append(last, c)
		default:
			next = append(next, c)
		}
	}
	r.sortByBlame(last)
	out := append(append(first, next...), last...)
	return out[:min(len(out), maxCandidates)]
}
