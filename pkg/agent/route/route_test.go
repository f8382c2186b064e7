package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// plain is no security.
type plain struct{}

func (plain) Credentials() credentials.TransportCredentials { return insecure.NewCredentials() }
func (plain) Explain(err error) error                       { return err }

func noSecurity() Security { return plain{} }

// world is some servers and the ways to them.
type world struct {
	mu      sync.Mutex
	servers map[string]*bufconn.Listener
	dead    map[string]bool // leads nowhere: dialling does not end
	open    map[string]int  // connections
	dialled []string
}

// newWorld runs a gRPC server at each address.
func newWorld(t *testing.T, addresses ...string) *world {
	t.Helper()
	w := &world{servers: map[string]*bufconn.Listener{}, dead: map[string]bool{}, open: map[string]int{}}
	for _, a := range addresses {
		l, srv := bufconn.Listen(1<<16), grpc.NewServer()
		w.servers[a] = l
		done := make(chan error, 1)
		go func() { done <- srv.Serve(l) }()
		t.Cleanup(func() {
			srv.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	return w
}

// counted is a connection that is counted until it is closed.
type counted struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *counted) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

func (w *world) dial(ctx context.Context, address string) (net.Conn, error) {
	w.mu.Lock()
	l, dead := w.servers[address], w.dead[address]
	w.dialled = append(w.dialled, address)
	w.mu.Unlock()
	switch {
	case dead:
		<-ctx.Done()
		return nil, ctx.Err()
	case l == nil:
		return nil, errors.New("connection refused")
	}
	conn, err := l.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	w.count(address, 1)
	return &counted{Conn: conn, closed: func() { w.count(address, -1) }}, nil
}

func (w *world) count(address string, by int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[address] += by
}

func (w *world) kill(addresses ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range addresses {
		w.dead[a] = true
	}
}

// connect returns the address it came to.
func connect(t *testing.T, r *Route) string {
	t.Helper()
	conn, err := r.Connect(t.Context(), noSecurity)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	return conn.Address
}

// TestStartsAnywhereAndStays: a fleet spreads, and each stays where it is.
func TestStartsAnywhereAndStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		addresses := []string{"a:1", "b:1", "c:1"}
		w := newWorld(t, addresses...)
		began := map[string]int{}
		for range 60 {
			r := New(Config{Addresses: addresses, Dial: w.dial})
			first := connect(t, r)
			began[first]++
			for range 3 {
				if again := connect(t, r); again != first {
					t.Fatalf("went from %s to %s", first, again)
				}
			}
			if n, none := r.Others(first, time.Time{}); n != 2 || none {
				t.Errorf("others: %d, none to go to: %v", n, none)
			}
		}
		for _, a := range addresses {
			if began[a] < 5 {
				t.Errorf("60 agents began at %v", began)
			}
		}
	})
}

// TestFailedComesLast: those that have failed are tried when no other is left,
// and are like the others again after a while.
func TestFailedComesLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a:1", "b:1", "c:1")
		r := New(Config{Addresses: []string{"a:1", "b:1", "c:1"}, Dial: w.dial})
		first := connect(t, r)
		if left := r.Leave(); left != first {
			t.Errorf("left %s, was at %s", left, first)
		}
		if left := r.Leave(); left != "" {
			t.Errorf("left %q, was nowhere", left)
		}
		second := connect(t, r)
		time.Sleep(time.Second)
		r.Blame(second)
		time.Sleep(time.Second)
		third := connect(t, r)
		if first == second || second == third || first == third {
			t.Errorf("went from %s to %s to %s", first, second, third)
		}
		if _, none := r.Others(third, time.Time{}); !none {
			t.Error("there is another one to go to, when both have failed")
		}
		if _, none := r.Others(third, time.Now()); none {
			t.Error("there is no other one to go to, when none has failed since")
		}
		r.Blame(third)
		if again := connect(t, r); again != first {
			t.Errorf("of three that have failed it went to %s, and not to %s, which was the first", again, first)
		}
		r.Leave()
		time.Sleep(blameFor)
		seen := map[string]bool{}
		for range 50 {
			seen[connect(t, r)] = true
			r.mu.Lock()
			r.current = ""
			r.mu.Unlock()
		}
		if len(seen) != 3 {
			t.Errorf("after a while it goes to %v only", seen)
		}
	})
}

// TestWaysThatLeadNowhere cost little, and close what they leave open.
func TestWaysThatLeadNowhere(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		addresses []string
		dead      []string
		most      time.Duration
	}{
		"one of two":    {[]string{"a:1", "b:1"}, []string{"b:1"}, firstLead},
		"two of three":  {[]string{"a:1", "b:1", "c:1"}, []string{"b:1", "c:1"}, 3 * firstLead},
		"one refuses":   {[]string{"a:1", "x:1"}, nil, 0},
		"refuse or die": {[]string{"a:1", "b:1", "x:1", "y:1"}, []string{"b:1"}, firstLead},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "a:1", "b:1", "c:1")
				w.kill(tc.dead...)
				for range 20 {
					r := New(Config{Addresses: tc.addresses, Dial: w.dial})
					begin := time.Now()
					conn, err := r.Connect(t.Context(), noSecurity)
					if err != nil {
						t.Fatal(err)
					}
					if took := time.Since(begin); conn.Address != "a:1" || took > tc.most {
						t.Errorf("connected to %s after %v, want at most %v", conn.Address, took, tc.most)
					}
					if err := conn.Close(); err != nil {
						t.Error(err)
					}
					if r.Leave() != "a:1" {
						t.Error("it is not the one in use")
					}
					for i, a := range w.dialled {
						if _, none := r.Others("a:1", begin); i == len(tc.addresses)-1 && a == "a:1" && !none {
							t.Error("those that were tried before are not to blame")
						}
					}
					w.dialled = nil
				}
				synctest.Wait()
				for a, n := range w.open {
					if n != 0 {
						t.Errorf("%d connections to %s were left open", n, a)
					}
				}
			})
		})
	}
}

// TestSlowServersAreNotRaced: what answers within the lead has no rival.
func TestSlowServersAreNotRaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a:1", "b:1")
		r := New(Config{Addresses: []string{"a:1", "b:1"}, Dial: func(ctx context.Context, address string) (net.Conn, error) {
			time.Sleep(firstLead - time.Millisecond)
			return w.dial(ctx, address)
		}})
		connect(t, r)
		if len(w.dialled) != 1 {
			t.Errorf("dialled %v", w.dialled)
		}
	})
}

// TestNobodyIsThere: each address's reason is told, within the time for all.
func TestNobodyIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a:1")
		w.kill("a:1")
		r := New(Config{Addresses: []string{"a:1", "x:1"}, Dial: w.dial})
		begin := time.Now()
		_, err := r.Connect(t.Context(), noSecurity)
		failed, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) || failed.All(ErrUnreachable) {
			t.Errorf("got %v", err)
		}
		for _, want := range []string{"a:1", "x:1"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s is not in: %v", want, err)
			}
		}
		if took := time.Since(begin); took != ConnectTimeout {
			t.Errorf("it took %v", took)
		}

		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		r = New(Config{Addresses: []string{"a:1"}, Dial: w.dial})
		if _, err := r.Connect(ctx, noSecurity); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if _, none := r.Others("", time.Time{}); none {
			t.Error("a server is to blame that was given no time")
		}
	})
}

func TestElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a:1", "b:1")
		r := New(Config{Addresses: []string{"a:1", "b:1"}, Dial: w.dial})
		first := connect(t, r)
		conn, err := r.Elsewhere(t.Context(), first, noSecurity)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if conn.Address == first || connect(t, r) != first {
			t.Errorf("from %s to %s, and that is in use already", first, conn.Address)
		}
		r.Use(conn.Address)
		if got := connect(t, r); got != conn.Address {
			t.Errorf("in use: %s", got)
		}
		alone := New(Config{Addresses: []string{"a:1"}, Dial: w.dial})
		if _, err := alone.Elsewhere(t.Context(), "a:1", noSecurity); err == nil || !strings.Contains(err.Error(), "no server beside a:1") {
			t.Errorf("with one server: %v", err)
		}
	})
}

// TestNames: every address a name has is a server, by what it stands for now,
// or last did.
func TestNames(t *testing.T) {
	t.Parallel()
	ip := netip.MustParseAddr
	var answer []netip.Addr
	var broken error
	r := New(Config{
		Addresses: []string{"servers.test:8081", "192.0.2.9:8082", "[2001:db8::9]:8081", "twin.test:8081"},
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host == "twin.test" {
				return []netip.Addr{ip("192.0.2.1")}, broken
			}
			return answer, broken
		},
	})
	resolved := func() []string {
		t.Helper()
		all, err := r.resolve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range all {
			out = append(out, fmt.Sprint(c.address, " as ", c.authority))
		}
		slices.Sort(out)
		return out
	}
	answer = []netip.Addr{ip("192.0.2.1"), ip("2001:db8::1"), ip("::ffff:192.0.2.2")}
	want := []string{
		"192.0.2.1:8081 as servers.test:8081", "192.0.2.2:8081 as servers.test:8081", "192.0.2.9:8082 as 192.0.2.9:8082",
		"[2001:db8::1]:8081 as servers.test:8081", "[2001:db8::9]:8081 as [2001:db8::9]:8081",
	}
	if got := resolved(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	broken = errors.New("no such host")
	if got := resolved(); !slices.Equal(got, want) {
		t.Errorf("while names cannot be resolved: %q", got)
	}
	broken, answer = nil, answer[:1]
	if got := resolved(); len(got) != 3 {
		t.Errorf("after a change: %q", got)
	}
	r = New(Config{Addresses: []string{"none.test:8081"}, Lookup: func(context.Context, string) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "none.test", IsNotFound: true}
	}})
	if _, err := r.Connect(t.Context(), noSecurity); err == nil || !strings.Contains(err.Error(), "none.test") {
		t.Errorf("a name that does not exist: %v", err)
	}
}
