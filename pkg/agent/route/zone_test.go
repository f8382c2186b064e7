package route

import (
	"net"
	"testing"

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
