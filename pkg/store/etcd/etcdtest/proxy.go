package etcdtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// proxy forwards TCP connections to one place, which may change. Whether a
// connection goes through is asked for every piece of data, so that one which
// was open when the network was cut hangs, as with a real cut.
type proxy struct {
	listener net.Listener
	// open says whether data of a connection may pass now; if not, the channel
	// is closed when that may have changed. from is of the sender, see sender.
	open func(from string) (bool, <-chan struct{})
	// peers says that the connections are those of etcd's members with each
	// other, which say in HTTP whose they are.
	peers bool

	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	target string        // guarded by mu
	delay  time.Duration // guarded by mu; of each piece of data from the target
	conns  map[net.Conn]struct{}
}

func newProxy(tb testing.TB, peers bool, open func(from string) (bool, <-chan struct{})) *proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	p := &proxy{listener: l, open: open, peers: peers, cancel: cancel, conns: make(map[net.Conn]struct{})}
	p.running.Go(func() { p.accept(ctx) })
	tb.Cleanup(p.stop)
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) stop() {
	p.cancel()
	_ = p.listener.Close() // Nobody is left to tell.
	p.dropAll()
	p.running.Wait()
}

func (p *proxy) set(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

func (p *proxy) slow(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// dropAll closes every connection.
func (p *proxy) dropAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close() // It is gone either way.
	}
}

func (p *proxy) keep(c net.Conn) (forget func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
		_ = c.Close() // It is gone either way.
	}
}

func (p *proxy) accept(ctx context.Context) {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.serve(ctx, c) })
	}
}

func (p *proxy) serve(ctx context.Context, client net.Conn) {
	defer p.keep(client)()
	if ctx.Err() != nil {
		return
	}
	in := bufio.NewReader(client)
	from := ""
	if p.peers {
		from = sender(in)
	}
	if !p.pass(ctx, from) {
		return
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	var d net.Dialer
	server, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer p.keep(server)()
	var both sync.WaitGroup
	both.Go(func() { p.copy(ctx, server, in, from, false); _ = server.Close(); _ = client.Close() })
	both.Go(func() { p.copy(ctx, client, server, from, true); _ = server.Close(); _ = client.Close() })
	both.Wait()
}

// copy forwards until one side closes.
func (p *proxy) copy(ctx context.Context, to io.Writer, in io.Reader, from string, answer bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 && (!p.wait(ctx, answer) || !p.pass(ctx, from)) {
			return
		}
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// wait lets an answer be late.
func (p *proxy) wait(ctx context.Context, answer bool) bool {
	p.mu.Lock()
	delay := p.delay
	p.mu.Unlock()
	if !answer || delay == 0 {
		return true
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pass returns true when data may pass.
func (p *proxy) pass(ctx context.Context, from string) bool {
	for {
		open, changed := p.open(from)
		if open {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// sender is the ID of the member that has made a connection to another, which
// it says in its first request: X-Server-From.
func sender(in *bufio.Reader) string {
	for n := 1; n <= in.Size(); n++ {
		head, err := in.Peek(max(n, in.Buffered()))
		if end := bytes.Index(head, []byte("\r\n\r\n")); end >= 0 {
			req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head[:end+4])))
			if err != nil {
				return ""
			}
			return req.Header.Get("X-Server-From")
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return ""
		}
		n = len(head)
	}
	return ""
}

// gate is a way that can be closed.
type gate struct {
	mu      sync.Mutex
	closed  bool          // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced with each change
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

func (g *gate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = closed
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) state() (open bool, changed <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.closed, g.changed
}
