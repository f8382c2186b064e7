package etcdtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// clusterTick is the heartbeat of a cluster's members, etcd's default: a new
// leader is there within two seconds, also on a busy machine.
const clusterTick = 100 * time.Millisecond

// Cluster is an etcd cluster whose members are processes. Its methods fail the
// test when they cannot do what they say; they are for one goroutine.
type Cluster struct {
	tb      testing.TB
	cluster string // as --initial-cluster has it
	members []*process
	options []Option
	peers   *gate // closed and opened to wake everybody; never stays closed

	mu       sync.Mutex
	isolated map[string]bool // guarded by mu; by member ID in hexadecimal, and by proxy
}

// process is one member.
type process struct {
	name, dir string
	peer      *proxy // where the other members find it
	client    *proxy // where clients find it; the same over restarts
	id        string // once the cluster is there
	cmd       *exec.Cmd
	stdin     io.Closer
	log       *os.File
	paused    bool
}

// NewCluster starts n members and returns when they have a leader. TestMain must
// call [Main].
func NewCluster(tb testing.TB, n int, options ...Option) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb, options: options, peers: newGate(), isolated: make(map[string]bool)}
	dir := tb.TempDir()
	var all []string
	for i := range n {
		p := &process{name: fmt.Sprintf("m%d", i), dir: filepath.Join(dir, fmt.Sprintf("m%d", i))}
		p.peer = newProxy(tb, true, func(from string) (bool, <-chan struct{}) { return c.passes(p, from) })
		p.client = newProxy(tb, false, func(string) (bool, <-chan struct{}) { return true, nil })
		c.members = append(c.members, p)
		all = append(all, p.name+"=http://"+p.peer.address())
	}
	c.cluster = strings.Join(all, ",")
	tb.Cleanup(c.stop)
	var g sync.WaitGroup
	problems := make([]error, n)
	for i := range n {
		g.Go(func() { problems[i] = c.start(i) })
	}
	g.Wait()
	for _, err := range problems {
		if err != nil {
			tb.Fatal(err)
		}
	}
	c.learnIDs()
	return c
}

// passes says whether what another member sends to p may pass.
func (c *Cluster) passes(p *process, from string) (bool, <-chan struct{}) {
	_, changed := c.peers.state()
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.isolated[p.name] && !c.isolated[from], changed
}

// start runs a member and waits until it listens.
func (c *Cluster) start(i int) error {
	p := c.members[i]
	s := spec{Name: p.name, Dir: p.dir, Peer: "http://" + p.peer.address(), Cluster: c.cluster, Tick: clusterTick}
	for _, o := range c.options {
		o(&s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), memberEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	if p.log, err = os.OpenFile(p.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	cmd.Stderr = p.log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd, p.stdin, p.paused = cmd, stdin, false
	var at addresses
	if err := json.NewDecoder(bufio.NewReader(stdout)).Decode(&at); err != nil {
		said, _ := os.ReadFile(p.log.Name()) // It is only shown.
		return fmt.Errorf("member %s did not start: %w\n%s", p.name, err, said)
	}
	p.peer.set(at.Peer)
	p.client.set(at.Client)
	return nil
}

// Endpoints are those of all members. They stay the same over restarts.
func (c *Cluster) Endpoints() []string {
	out := make([]string, len(c.members))
	for i, p := range c.members {
		out[i] = "http://" + p.client.address()
	}
	return out
}

// Link is a way to the cluster for one client, which can be cut.
func (c *Cluster) Link() *Link { return NewLink(c.tb, c.Endpoints()...) }

// Kill ends a member at once, as kill -9 does.
func (c *Cluster) Kill(member int) {
	c.tb.Helper()
	p := c.members[member]
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill() // It may have ended.
	_ = p.cmd.Wait()         // It was killed.
	_, _ = p.stdin.Close(), p.log.Close()
	p.cmd, p.paused = nil, false
}

// Restart runs a member that was killed again, on the data it left.
func (c *Cluster) Restart(member int) {
	c.tb.Helper()
	c.Kill(member)
	if err := c.start(member); err != nil {
		c.tb.Fatal(err)
	}
}

// Pause stops a member as SIGSTOP does: its connections stay, and nothing comes.
func (c *Cluster) Pause(member int) {
	c.tb.Helper()
	c.signal(member, syscall.SIGSTOP)
	c.members[member].paused = true
}

// Continue lets a paused member go on.
func (c *Cluster) Continue(member int) {
	c.tb.Helper()
	c.signal(member, syscall.SIGCONT)
	c.members[member].paused = false
}

func (c *Cluster) signal(member int, sig syscall.Signal) {
	c.tb.Helper()
	if p := c.members[member]; p.cmd == nil {
		c.tb.Fatalf("member %d does not run", member)
	} else if err := p.cmd.Process.Signal(sig); err != nil {
		c.tb.Fatal(err)
	}
}

// Isolate cuts a member off from the others. Clients still reach it.
func (c *Cluster) Isolate(member int) { c.isolate(member, true) }

// Rejoin ends Isolate.
func (c *Cluster) Rejoin(member int) { c.isolate(member, false) }

func (c *Cluster) isolate(member int, cut bool) {
	p := c.members[member]
	c.mu.Lock()
	c.isolated[p.name], c.isolated[p.id] = cut, cut
	c.mu.Unlock()
	c.peers.set(false)
}

// Leader is the member that leads now. It waits until there is one that a
// majority follows.
func (c *Cluster) Leader() int {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), startWait)
	defer cancel()
	for ctx.Err() == nil {
		for i, p := range c.members {
			if p.cmd == nil || p.paused {
				continue
			}
			if id, err := c.leaderOf(ctx, i); err == nil && id != "" {
				for j, q := range c.members {
					if q.id == id && q.cmd != nil && !q.paused {
						return j
					}
				}
			}
		}
	}
	c.tb.Fatal("there is no leader after ", startWait)
	return -1
}

// leaderOf asks a member, which must be able to read what a majority agrees on.
func (c *Cluster) leaderOf(ctx context.Context, member int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	cli := c.Client(member)
	defer cli.Close() //nolint:errcheck // It was only asked.
	if _, err := cli.Get(ctx, "leader"); err != nil {
		return "", err
	}
	resp, err := cli.Status(ctx, cli.Endpoints()[0])
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", resp.Leader), nil
}

// Client is a client of etcd itself, of the members or of all if none is named.
// The caller closes it.
func (c *Cluster) Client(members ...int) *clientv3.Client {
	c.tb.Helper()
	endpoints := c.Endpoints()
	if len(members) > 0 {
		var some []string
		for _, i := range members {
			some = append(some, endpoints[i])
		}
		endpoints = some
	}
	return NewClient(c.tb, endpoints...)
}

// NewClient is a client of etcd itself, without TLS and user. The caller closes
// it.
func NewClient(tb testing.TB, endpoints ...string) *clientv3.Client {
	tb.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialTimeout: startWait})
	if err != nil {
		tb.Fatal(err)
	}
	return cli
}

// learnIDs waits for the first leader.
func (c *Cluster) learnIDs() {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(c.tb.Context(), startWait)
	defer cancel()
	cli := c.Client()
	defer cli.Close() //nolint:errcheck // It was only asked.
	for {
		resp, err := cli.MemberList(ctx)
		if err != nil && ctx.Err() == nil {
			continue
		}
		if err != nil {
			c.tb.Fatalf("the cluster has no leader: %v", err)
		}
		for _, m := range resp.Members {
			for _, p := range c.members {
				if m.Name == p.name {
					p.id = fmt.Sprintf("%x", m.ID)
				}
			}
		}
		return
	}
}

func (c *Cluster) stop() {
	for i := range c.members {
		c.Kill(i)
	}
}
