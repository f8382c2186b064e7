package route

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// TestZone: an address of IPv6 may name an interface.
func TestZone(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("this machine has no IPv6:", err)
	}
	srv, done := grpc.NewServer(), make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got := connect(t, New(Config{Addresses: []string{"[::1%lo]:" + port}})); got != "[::1%lo]:"+port {
		t.Errorf("connected to %s", got)
	}
}

// TestTwoWaysToOneServer: a name that has an address of each version of IP, as
// localhost does, is one server, to which an agent cannot go when it is drained.
func TestTwoWaysToOneServer(t *testing.T) {
	t.Parallel()
	one, two := []string{"192.0.2.1", "2001:db8::1"}, []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}
	for name, tc := range map[string]struct {
		addresses []string
		has       []string // addresses of the name
		want      int      // others, beside the first one
	}{
		"one":                  {[]string{"servers.test:8081"}, one, 0},
		"two":                  {[]string{"servers.test:8081"}, two, 1},
		"of one version":       {[]string{"servers.test:8081"}, []string{"192.0.2.1", "192.0.2.2"}, 1},
		"and another":          {[]string{"servers.test:8081", "192.0.2.9:8081"}, one, 1},
		"by addresses, not it": {[]string{"192.0.2.1:8081", "[2001:db8::1]:8081"}, nil, 1},
	} {
		r := New(Config{Addresses: tc.addresses, Lookup: func(context.Context, string) ([]netip.Addr, error) {
			var out []netip.Addr
			for _, a := range tc.has {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		}})
		all, err := r.resolve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.order(all, "", time.Now())
		for _, from := range all {
			n, none := r.Others(from.address, time.Time{})
			want := tc.want
			if from.address == "192.0.2.9:8081" {
				want = len(tc.has)
			}
			if n != want || none {
				t.Errorf("%s: %d beside %s, want %d (none: %v)", name, n, from.address, want, none)
			}
		}
	}
}
