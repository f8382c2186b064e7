package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func healthOf(s *server) grpc_health_v1.HealthClient { return grpc_health_v1.NewHealthClient(s.conn) }

// TestThreeServersOverEtcd loses, one after the other, the leader of etcd, a
// server, the way of a server to etcd, and a server that hangs, while entries are
// written and agents follow: after each, nothing that was acknowledged is lost,
// and every agent has exactly what it may have.
//
// With SOAK=1 it goes on at random; CHAOS_SEED repeats a run.
func TestThreeServersOverEtcd(t *testing.T) {
	t.Parallel()
	c := newTrio(t, "trio")
	c.oneToken()
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer stop()
	c.settle(ctx, &busy, 6)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CHAOS_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	writer := rand.New(rand.NewPCG(seed, 1))
	busy.Go(func() { c.write(ctx, writer) })
	c.converge("at first")

	if os.Getenv("SOAK") == "" {
		c.loseLeader()
		c.loseServer(0)
		c.cutServer(1)
		c.pauseServer(2, 30*time.Second)
		c.reconnect(60)
		return
	}
	const rounds = 40
	for i := range rounds {
		t.Logf("round %d of %d", i+1, rounds)
		switch r.IntN(5) {
		case 0, 1:
			c.loseLeader()
		case 2:
			c.loseServer(r.IntN(3))
		case 3:
			c.cutServer(r.IntN(3))
		case 4:
			c.pauseServer(r.IntN(3), 30*time.Second)
		}
	}
	c.reconnect(10_000)
}

// loseLeader kills the leader of etcd, and brings it back.
func (c *trio) loseLeader() {
	c.t.Helper()
	leader := c.etcd.Leader()
	c.etcd.Kill(leader)
	c.converge("after the loss of etcd's leader")
	c.etcd.Restart(leader)
}

// loseServer kills a server and starts it again, on its data_dir, before the
// lease of its ID is over.
func (c *trio) loseServer(i int) {
	c.t.Helper()
	c.servers[i].kill()
	for _, a := range c.nomads {
		if a.wasRefused() == nil {
			eventually(c.t, a.name+" has another server", func() error { return notAt(a, i) })
		}
	}
	c.servers[i].start()
	c.converge("after the loss of server " + fmt.Sprint(i))
}

func notAt(a *nomad, i int) error {
	if at := a.connected(); at == -1 || at == i {
		return fmt.Errorf("it is at %d", at)
	}
	return nil
}

// cutServer cuts a server off from etcd for longer than it may go on.
func (c *trio) cutServer(i int) {
	c.t.Helper()
	t, cut, other := c.t, c.servers[i], c.servers[(i+1)%3]
	good, bad := newNomad(t, other, c.servers, "a good agent", "/group/0"), newNomad(t, other, c.servers, "an agent to be banned", "/group/0")
	entry := other.create(c.entry("/signed", good.id, "unix:uid:1"))
	defer other.remove(entry.GetId())
	conn, banned := good.dialAs(cut, good.svid), bad.dialAs(cut, bad.svid)
	for _, at := range []func() error{
		func() error { return good.sign(conn, entry.GetId()) },
		func() error { return notFound(bad.sign(banned, entry.GetId())) },
	} {
		if err := at(); err != nil {
			t.Errorf("before the cut: %v", err)
		}
	}

	c.links[i].Cut()
	begin := time.Now()
	other.ban(bad.id)
	_, err := cut.entries().ListEntries(bounded(t), &entryv1.ListEntriesRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a list of a server that is cut off: %v", err)
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("the refusal took %v", took)
	}
	if err := good.sign(conn, entry.GetId()); err != nil && time.Since(begin) < trioStaleness/2 {
		t.Errorf("issuing stopped %v after the cut: %v", time.Since(begin), err)
	}
	for _, a := range append([]*nomad{good}, c.nomads...) {
		if a != good && a.wasRefused() == nil {
			eventually(t, a.name+" has left the server that is cut off", func() error { return notAt(a, i) })
		}
	}
	eventually(t, "issuing stops", func() error {
		if err := good.sign(conn, entry.GetId()); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "max_staleness") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	if early := time.Since(begin); early < trioStaleness/2 {
		t.Errorf("issuing stopped after %v", early)
	}

	c.links[i].Heal()
	eventually(t, "issuing goes on", func() error { return good.sign(conn, entry.GetId()) })
	if err := bad.sign(banned, entry.GetId()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the agent that was banned meanwhile: %v", err)
	}
	c.converge("after server " + fmt.Sprint(i) + " was cut off")
}

// notFound is nil for the answer to an agent that may not have an entry.
func notFound(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return fmt.Errorf("got %w, want that there is no such entry", err)
}

// pauseServer stops a server as SIGSTOP does, for a while.
func (c *trio) pauseServer(i int, pause time.Duration) {
	c.t.Helper()
	if err := c.servers[i].proc.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
	sleepUntil(c.t, time.Now().Add(pause))
	if err := c.servers[i].proc.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		c.t.Fatal(err)
	}
	c.converge("after server " + fmt.Sprint(i) + " was paused")
}

// oneToken is S03 on etcd: of many agents that come with one token to three
// servers, one is let in, and its key may come again.
func (c *trio) oneToken() {
	c.t.Helper()
	t := c.t
	stranger := &nomad{t: t, roots: newNomad(t, c.servers[0], c.servers, "a stranger", "/group/9").roots}
	token := c.servers[0].token()
	var mu sync.Mutex
	var won [][]byte
	var attempts sync.WaitGroup
	conns := make([]*grpc.ClientConn, len(c.servers))
	for i, s := range c.servers {
		conns[i] = stranger.dialAs(s, nil)
	}
	for i := range 200 {
		csr := newCSR(t, newECKey(t))
		attempts.Go(func() {
			err := insist(func() error {
				_, err := joinWith(bounded(t), conns[i%3], token, csr)
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won = append(won, csr)
			case status.Code(err) != codes.InvalidArgument:
				t.Errorf("an attempt that came too late: %v", err)
			}
		})
	}
	attempts.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of 200 attempts with one token succeeded", len(won))
	}
	for i, conn := range conns {
		err := insist(func() error {
			_, err := joinWith(bounded(t), conn, token, won[0])
			return err
		})
		if err != nil {
			t.Errorf("the same key again, at server %d: %v", i, err)
		}
	}
}

// insist does again what a busy server had no time for, as agents do.
func insist(do func() error) error {
	for end := time.Now().Add(patience); ; {
		err := do()
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded:
			if time.Now().Before(end) {
				continue
			}
		}
		return err
	}
}

// reconnect has agents come and go, and looks for what they leave behind.
func (c *trio) reconnect(n int) {
	c.t.Helper()
	before := c.traces()
	var coming sync.WaitGroup
	const side = 4 // by side
	for k := range side {
		a := newNomad(c.t, c.servers[k%3], c.servers, fmt.Sprint("visitor ", k), "/group/1")
		a.seen, a.visiting = c.saw, true
		coming.Go(func() {
			for i := range n / side {
				ctx, cancel := context.WithTimeout(c.t.Context(), patience)
				conn := a.dialAs(c.servers[i%3], a.svid)
				if err := a.stream(ctx, conn, i%3); !errors.Is(err, errSeen) {
					c.t.Errorf("%s: its stream %d: %v", a.name, i, err)
				}
				_ = conn.Close() // It has been seen.
				cancel()
			}
		})
	}
	coming.Wait()
	const slack = 30 // What comes and goes by itself.
	for i := range c.servers {
		eventually(c.t, "server "+fmt.Sprint(i)+" is as before", func() error {
			now := c.traces()[i]
			if now.files > before[i].files+slack || now.goroutines > before[i].goroutines+3*slack {
				return fmt.Errorf("%d files and %d goroutines, before %d and %d", now.files, now.goroutines, before[i].files, before[i].goroutines)
			}
			return nil
		})
	}
}

// trace is what a process has open.
type trace struct{ files, goroutines int }

func (c *trio) traces() []trace {
	c.t.Helper()
	out := make([]trace, len(c.servers))
	for i, s := range c.servers {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.proc.cmd.Process.Pid))
		if err != nil {
			c.t.Fatal(err)
		}
		out[i].files = len(files)
		for line := range strings.Lines(get(c.t, fmt.Sprintf("http://127.0.0.1:%d/metrics", c.metrics[i]))) {
			if value, ok := strings.CutPrefix(line, "go_goroutines "); ok {
				if out[i].goroutines, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
					c.t.Fatal(err)
				}
			}
		}
	}
	return out
}
