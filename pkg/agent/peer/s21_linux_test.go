package peer

import (
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/workload/unix"
)

// descriptorsAndGoroutines of this process.
func descriptorsAndGoroutines(t *testing.T) (int, int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds), runtime.NumGoroutine()
}

// TestS21_ConnectDisconnect: 1e5 connections (1e6 with SOAK) leave no
// descriptor, goroutine or watch behind, whoever hangs up, and when. Not
// parallel: it counts what the process has.
func TestS21_ConnectDisconnect(t *testing.T) {
	cycles := 100_000
	if testing.Short() {
		cycles = 5_000
	}
	if os.Getenv("SOAK") != "" {
		cycles *= 10
	}
	c := NewCredentials(Config{})
	run(t, c)
	raw, err := net.Listen("unix", publicDir(t)+"/api.sock")
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listener(raw)
	var serving sync.WaitGroup
	serving.Go(func() {
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serveOne(t, c, conn, i)
		}
	})
	before, beforeG := 0, 0
	for i := range cycles {
		conn, err := net.Dial("unix", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if i%4 != 0 { // else: hang up at once
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Fatal("the server wrote something")
			}
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		if i == cycles/100 {
			before, beforeG = descriptorsAndGoroutines(t)
		}
	}
	eventually(t, "all are closed", func() bool { return c.watch.len() == 0 })
	after, afterG := descriptorsAndGoroutines(t)
	if after > before+10 || afterG > beforeG+10 {
		t.Errorf("descriptors %d → %d, goroutines %d → %d", before, after, beforeG, afterG)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	serving.Wait()
}

// serveOne goes through what can happen to a connection.
func serveOne(t *testing.T, c *Credentials, raw net.Conn, i int) {
	if i%7 == 6 { // closed before the handshake, as at shutdown
		_ = raw.Close()
	}
	got, _, err := c.ServerHandshake(raw)
	switch {
	case err != nil && i%7 != 6:
		t.Errorf("handshake: %v", err)
	case err == nil && i%3 == 1:
		got.(*conn).proc.end(ErrGone) // as Check and Run do
	case err == nil && i%3 == 2:
		_ = got.Close()
	}
	_ = raw.Close() // what gRPC closes, in the end
}

// TestS21_GRPC: the same through gRPC, whose first write may fail, and with
// connections that say nothing.
func TestS21_GRPC(t *testing.T) {
	a := newAgent(unix.Config{})
	run(t, a.creds)
	socket := a.start(t, nil)
	cycle := func() {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		cycle()
	}
	settle := func() bool { return a.creds.watch.len() == 0 }
	eventually(t, "all are closed", settle)
	time.Sleep(50 * time.Millisecond)
	before, beforeG := descriptorsAndGoroutines(t)
	for range 3_000 {
		cycle()
	}
	eventually(t, "descriptors and goroutines are as before", func() bool {
		after, afterG := descriptorsAndGoroutines(t)
		return settle() && after <= before+5 && afterG <= beforeG+5
	})
}

// TestS21_ManyOpen: open connections cost descriptors, and no goroutine.
func TestS21_ManyOpen(t *testing.T) {
	const open = 500
	c := NewCredentials(Config{})
	run(t, c)
	raw, err := net.Listen("unix", publicDir(t)+"/api.sock")
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listener(raw)
	defer l.Close()
	before, beforeG := descriptorsAndGoroutines(t)
	var conns []net.Conn
	for range open {
		client, err := net.Dial("unix", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ServerHandshake(conn); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, client, conn)
	}
	during, duringG := descriptorsAndGoroutines(t)
	// Two sockets, the pidfd, the directory and a file in it.
	if during > before+5*open+10 || duringG > beforeG+10 {
		t.Errorf("%d connections: descriptors %d → %d, goroutines %d → %d", open, before, during, beforeG, duringG)
	}
	for _, conn := range conns {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	after, _ := descriptorsAndGoroutines(t)
	if after > before+10 || c.watch.len() != 0 {
		t.Errorf("closed: descriptors %d → %d, %d are watched", before, after, c.watch.len())
	}
}
