package failover

import (
	"errors"
	"net"
	"sync"
	"testing"
)

// proxy passes TCP connections on to a server. What happens to a machine or to
// the network before it, happens here.
type proxy struct {
	t  *testing.T
	to string

	mu       sync.Mutex
	listener net.Listener // nil: nobody listens
	at       string
	conns    map[net.Conn]struct{} // the agents' side
	silent   chan struct{}         // not nil: nothing passes until it is closed
	running  sync.WaitGroup
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	p := &proxy{t: t, to: to, at: "127.0.0.1:0", conns: map[net.Conn]struct{}{}}
	p.listen()
	t.Cleanup(func() {
		p.speak()
		p.kill()
		p.running.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.at }

// listen lets agents in.
func (p *proxy) listen() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.at)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.listener = l.Addr().String(), l
	p.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.pass(conn) })
		}
	})
}

// kill is kill -9: connections end at once, and nobody listens.
func (p *proxy) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		_ = p.listener.Close() // That is what was wanted.
		p.listener = nil
	}
	for c := range p.conns {
		_ = c.Close() // That too.
	}
}

// hush is a process that is stopped, or a network that loses everything:
// connections are there, new ones too, and nothing passes.
func (p *proxy) hush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = make(chan struct{})
}

// speak ends that.
func (p *proxy) speak() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent != nil {
		close(p.silent)
		p.silent = nil
	}
}

// open is how many connections agents have.
func (p *proxy) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

func (p *proxy) pass(conn net.Conn) {
	p.mu.Lock()
	p.conns[conn] = struct{}{}
	p.mu.Unlock()
	defer func() {
		_ = conn.Close() // It may be closed already.
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, conn)
	}()
	p.wait()
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return // As if nobody listened.
	}
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, conn) })
	both.Go(func() { p.copy(conn, server) })
	both.Wait()
}

// copy ends both connections when one of them does.
func (p *proxy) copy(to, from net.Conn) {
	defer func() { _ = errors.Join(to.Close(), from.Close()) }() // One of them is.
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		p.wait()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) wait() {
	p.mu.Lock()
	silent := p.silent
	p.mu.Unlock()
	if silent != nil {
		<-silent
	}
}
