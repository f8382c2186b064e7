package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/tap"

	"github.com/credence-id/credence/pkg/connlimit"
)

// dialFrom connects to the TLS listener from an address of this machine.
func (r *running) dialFrom(t *testing.T, ip string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := d.DialContext(t.Context(), "tcp", r.Address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// hangsUp says whether the server does, without a word, before the test's
// patience ends.
func hangsUp(conn net.Conn, patience time.Duration) bool {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return true
	}
	_, err := io.Copy(io.Discard, conn)
	return !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// S07: whoever opens connections and says nothing takes a bounded number of
// places, and none from others.
func TestS07_SilentConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	served(t, r, "before")
	const more = 40
	conns, refused := make([]net.Conn, maxSourceHandshakes+more), 0.0
	// A busy machine may take so long over this that the first ones make room.
	soon(t, "all have come within the grace of the first", func(context.Context) bool {
		refused = count(t, r.inside.door.refused, becauseSourceHandshakes)
		begin := time.Now()
		for i := range conns {
			conns[i] = r.dialFrom(t, "127.0.0.2")
		}
		for time.Since(begin) < handshakeGrace {
			if count(t, r.inside.door.refused, becauseSourceHandshakes) == refused+more {
				return true
			}
			time.Sleep(5 * time.Millisecond)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
		soon(t, "places are free", func(context.Context) bool { return r.inside.door.handshakes.Len() == 0 })
		return false
	})
	// The last ones were not wanted.
	for i, conn := range conns[maxSourceHandshakes:] {
		if !hangsUp(conn, patience) {
			t.Fatalf("connection %d of one source is kept waiting", maxSourceHandshakes+i+1)
		}
	}
	if hangsUp(conns[maxSourceHandshakes-1], 10*time.Millisecond) {
		t.Error("a connection within the limit was ended")
	}
	served(t, r, "meanwhile") // From 127.0.0.1.
	if n := count(t, r.inside.door.refused, becauseSourceHandshakes) - refused; n != more {
		t.Errorf("%v connections were refused, want %d", n, more)
	}
	if n := strings.Count(r.log.String(), hints[becauseSourceHandshakes]); n != 1 {
		t.Errorf("that is said %d times in a minute", n)
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	soon(t, "places are free", func(context.Context) bool { return r.inside.door.handshakes.Len() == 0 })
}

// S07: and whoever shakes hands, shows no certificate and stays, too.
func TestS07_StrangersAreBounded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	cfg := r.clientTLS(t, nil)
	cfg.NextProtos = []string{"h2"}
	var conns []net.Conn
	shake := func() net.Conn {
		conn := tls.Client(r.dialFrom(t, "127.0.0.2"), cfg)
		conns = append(conns, conn)
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// A busy machine may take so long over this that the first ones make room.
	soon(t, "two too many come within the grace of the first, and are hung up on", func(context.Context) bool {
		refused, begin := count(t, r.inside.door.refused, becauseSourceStrangers), time.Now()
		for range maxSourceStrangers {
			shake()
		}
		// The server knows that a handshake is done a moment later.
		for r.inside.door.strangers.Len() < maxSourceStrangers && time.Since(begin) < strangerGrace {
			time.Sleep(5 * time.Millisecond)
		}
		gone := hangsUp(shake(), strangerGrace)
		gone = hangsUp(shake(), strangerGrace) && gone
		if gone && time.Since(begin) < strangerGrace {
			if n := count(t, r.inside.door.refused, becauseSourceStrangers) - refused; n != 2 {
				t.Errorf("%v strangers were refused, want 2", n)
			}
			return true
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
		conns = nil
		soon(t, "places are free", func(context.Context) bool { return r.inside.door.strangers.Len() == 0 })
		return false
	})
	served(t, r, "meanwhile")
}

// An agent's newest connections stay; so does everybody else's.
func TestCallersConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	one, other := r.attest(t), r.attest(t)
	if err := calls["GetAuthorizedEntries"](t.Context(), other.conn); err != nil {
		t.Fatal(err)
	}
	cfg := r.clientTLS(t, &one.cert)
	cfg.NextProtos = []string{"h2"}
	conns := make([]*tls.Conn, maxAgentConns+3)
	for i := range conns {
		conns[i] = tls.Client(r.dialFrom(t, "127.0.0.1"), cfg)
		if err := conns[i].HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := min(i+1, maxAgentConns) + 1
		soon(t, "the connection has a place", func(context.Context) bool { return r.inside.door.agents.Len() == want })
	}
	for i, conn := range conns {
		if i < 3 && !hangsUp(conn, patience) {
			t.Errorf("the agent's connection %d of %d stays", i+1, len(conns))
		}
		if i >= 3 && hangsUp(conn, 10*time.Millisecond) {
			t.Errorf("the agent's connection %d of %d was ended", i+1, len(conns))
		}
	}
	if err := calls["GetAuthorizedEntries"](t.Context(), other.conn); err != nil {
		t.Errorf("another agent: %v", err)
	}
}

// S07: a caller with a certificate that begins messages and does not end them
// is bounded as well.
func TestS07_UnfinishedMessagesAreBounded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	agent := r.attest(t)
	a := attackWith(t, r, &agent.cert)
	gone := a.drain()
	begun := append([]byte{0, 0, 0x3f, 0xff, 0xff}, make([]byte, 16<<10-5)...)
	more := make([]byte, 16<<10)
	sent := 0
	for id := uint32(1); id < 2*maxStreams; id += 2 {
		err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: a.blockFor(t, svidv1.SVID_BatchNewX509SVID_FullMethodName), EndHeaders: true})
		for _, data := range [][]byte{begun, more, more} {
			if err == nil {
				err = a.WriteData(id, false, data)
				sent += len(data)
			}
		}
		if err != nil {
			break
		}
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatalf("the server holds %d bytes of an agent's unfinished messages", sent)
	}

	// One that ends its messages may send as much as it likes.
	client := bundlev1.NewBundleClient(agent.conn)
	filler := &bundlev1.GetBundleRequest{}
	filler.ProtoReflect().SetUnknown(append([]byte{0xfa, 0x7f, 0x80, 0x80, 0x80, 0x01}, make([]byte, 2<<20)...))
	for range 3 * agentBytes / (2 << 20) {
		if _, err := client.GetBundle(t.Context(), filler); err != nil {
			t.Fatal(err)
		}
	}
}

// Every call has a deadline from its headers on, but for streams that have
// another end.
func TestEveryCallHasADeadline(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	for service, info := range r.inside.newGRPC(localCredentials{}).GetServiceInfo() {
		for _, m := range info.Methods {
			method := "/" + service + "/" + m.Name
			want := callTimeout
			if m.IsServerStream || m.IsClientStream {
				var ok bool
				if want, ok = timeouts[method]; !ok {
					t.Errorf("%s is a stream that is not in timeouts", method)
				}
			} else if _, ok := timeouts[method]; ok {
				t.Errorf("%s is in timeouts and is not a stream", method)
			}
			ctx, err := tapIn(t.Context(), &tap.Info{FullMethodName: method})
			if err != nil {
				t.Fatal(err)
			}
			deadline, ok := ctx.Deadline()
			if left := time.Until(deadline); ok != (want > 0) || ok && (left > want || left < want-10*time.Second) {
				t.Errorf("%s has %v left (%v), want %v", method, left, ok, want)
			}
		}
	}
}

// A message that is begun and not ended ends the call at its deadline: here, the
// client's own.
func TestHalfAMessageEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	a := attack(t, r)
	a.headers.Reset()
	for _, f := range [][2]string{
		{":method", "POST"},
		{":scheme", "https"},
		{":path", bundlev1.Bundle_GetBundle_FullMethodName},
		{":authority", "server"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
		{"grpc-timeout", "200m"},
	} {
		if err := a.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.headers.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	if err := a.WriteData(1, false, []byte{0, 0, 0, 0, 9, 1}); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := a.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h := f.Header(); h.StreamID == 1 && (h.Type == http2.FrameRSTStream || h.Flags.Has(http2.FlagHeadersEndStream)) {
			return
		}
	}
}

// The end of a connection's life is what is left when gRPC takes its deadline
// for the handshake away.
func TestConnectionsEnd(t *testing.T) {
	t.Parallel()
	server, client := net.Pipe()
	defer client.Close()
	e := &entrant{Conn: server}
	if err := e.SetDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	e.live(time.Now().Add(50 * time.Millisecond))
	if err := e.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("Read at the end of life: %v", err)
	}
	pool := connlimit.NewPool[string](connlimit.PoolConfig{})
	place, err := pool.Enter(time.Now(), "a", func() {})
	if err != nil {
		t.Fatal(err)
	}
	e.move(place)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := e.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close again: %v", err)
	}
	late, err := pool.Enter(time.Now(), "a", func() {})
	if err != nil {
		t.Fatal(err)
	}
	if e.move(late); pool.Len() != 0 {
		t.Error("a closed connection keeps a place")
	}
}

// Who comes in without a certificate may stay for a while, who has one for a
// while longer than it is good for.
func TestWelcomeSaysHowLong(t *testing.T) {
	t.Parallel()
	d, err := newDoor(nil, 4096, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"stranger": "", "agent": "/spire/agent/x/1", "workload": "/w"} {
		e := d.entrant(&sent{})
		var chain []*x509.Certificate
		want := time.Now().Add(strangerAge)
		if path != "" {
			cert, err := x509.ParseCertificate(selfSigned(t, spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(testDomain), path)).Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			chain, want = []*x509.Certificate{cert}, cert.NotAfter.Add(endGrace)
		}
		_, budget, err := e.welcome(e, e.seen, chain)
		if err != nil || (budget != nil) != (path != "") {
			t.Errorf("%s: budget %v, %v", name, budget, err)
		}
		if off := e.end.Sub(want).Abs(); off > 10*time.Second {
			t.Errorf("%s: the connection ends at %v, want %v", name, e.end, want)
		}
	}
	if d.strangers.Len() != 1 || d.agents.Len() != 1 || d.callers.Len() != 1 {
		t.Errorf("%d strangers, %d agents, %d others, want one of each", d.strangers.Len(), d.agents.Len(), d.callers.Len())
	}
}

// TestStopWaitsForNoSilentConnection: neither for a TLS handshake nor for the
// HTTP/2 preface after one.
func TestStopWaitsForNoSilentConnection(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	r.dialFrom(t, "127.0.0.1")
	soon(t, "a handshake under way", func(context.Context) bool { return r.inside.door.handshakes.Len() == 1 })
	begin := time.Now()
	if err := r.stop(); err != nil || time.Since(begin) > stopGrace/2 {
		t.Errorf("with a handshake under way: stopped after %v: %v", time.Since(begin), err)
	}

	r = start(t, testConfig(t))
	cfg := r.clientTLS(t, nil)
	cfg.NextProtos = []string{"h2"}
	conn := tls.Client(r.dialFrom(t, "127.0.0.1"), cfg)
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	soon(t, "a stranger's connection", func(context.Context) bool { return r.inside.door.strangers.Len() > 0 })
	begin = time.Now()
	if err := r.stop(); err != nil || time.Since(begin) > stopGrace+stopGrace/2 {
		t.Errorf("with a connection that says nothing: stopped after %v: %v", time.Since(begin), err)
	}
	if strings.Contains(r.log.String(), "had to make room") {
		t.Error("the log blames the connections that were ended")
	}
}
