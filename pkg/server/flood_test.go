package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// attacker is a client that speaks HTTP/2 by hand.
type attacker struct {
	conn *tls.Conn
	*http2.Framer
	headers bytes.Buffer
	enc     *hpack.Encoder
}

// attack connects without a certificate.
func attack(t *testing.T, r *running) *attacker {
	t.Helper()
	return attackWith(t, r, nil)
}

func attackWith(t *testing.T, r *running, cert *tls.Certificate) *attacker {
	t.Helper()
	cfg := r.clientTLS(t, cert)
	cfg.NextProtos = []string{"h2"}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: cfg}
	raw, err := d.DialContext(t.Context(), "tcp", r.Address.String())
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := raw.(*tls.Conn)
	if !ok {
		t.Fatal("not a TLS connection")
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	a := &attacker{conn: conn, Framer: http2.NewFramer(conn, conn)}
	a.enc = hpack.NewEncoder(&a.headers)
	if err := a.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return a
}

// block is the headers of a call of a stream that anyone may open.
func (a *attacker) block(t *testing.T) []byte {
	t.Helper()
	return a.blockFor(t, agentv1.Agent_AttestAgent_FullMethodName)
}

func (a *attacker) blockFor(t *testing.T, method string) []byte {
	t.Helper()
	a.headers.Reset()
	for _, f := range [][2]string{
		{":method", "POST"},
		{":scheme", "https"},
		{":path", method},
		{":authority", "server"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
	} {
		if err := a.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	return a.headers.Bytes()
}

// drain reads what the server says, so that it is not held up by that, and
// returns a channel that closes when it hangs up.
func (a *attacker) drain() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, a.conn)
	}()
	return gone
}

// served says whether another client is served meanwhile.
func served(t *testing.T, r *running, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := calls["GetBundle"](ctx, r.dial(t, nil)); err != nil {
		t.Errorf("%s, another client: %v", what, err)
	}
}

// TestS27_RapidReset opens calls and takes them back at once, by the tens of
// thousands: what the server does for them at one time stays bounded.
func TestS27_RapidReset(t *testing.T) {
	r := start(t, testConfig(t)) // Alone: it counts goroutines.
	served(t, r, "before")
	a := attack(t, r)
	gone := a.drain()
	before, most := runtime.NumGoroutine(), 0
	sent := 0
	for id := uint32(1); id < 2*20000; id += 2 {
		err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: a.block(t), EndHeaders: true})
		if err == nil {
			err = a.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err != nil {
			break // The server hung up, which is an answer too.
		}
		if sent++; sent%500 == 0 {
			most = max(most, runtime.NumGoroutine())
		}
	}
	served(t, r, "during")
	t.Logf("%d calls opened and reset, goroutines from %d to %d", sent, before, most)
	// A call has the handler, conversations that are ending, and a timer or
	// two that fires; how many are ending depends on the machine's load.
	if limit := before + 10*maxStreams; most > limit {
		t.Errorf("%d goroutines, want at most %d", most, limit)
	}
	if err := a.conn.Close(); err != nil {
		t.Error(err)
	}
	<-gone
	soon(t, "goroutines are back", func(context.Context) bool { return runtime.NumGoroutine() <= before+20 })
}

// TestS27_ContinuationFlood sends headers that do not end.
func TestS27_ContinuationFlood(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	a := attack(t, r)
	gone := a.drain()
	if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.block(t)}); err != nil {
		t.Fatal(err)
	}
	a.headers.Reset()
	if err := a.enc.WriteField(hpack.HeaderField{Name: "x-flood", Value: strings.Repeat("x", 8000), Sensitive: true}); err != nil {
		t.Fatal(err)
	}
	// The kernel's buffers take some before the writer hears of the end.
	const limit = 64 << 20
	sent := 0
	for sent < limit {
		if err := a.WriteContinuation(1, false, a.headers.Bytes()); err != nil {
			break
		}
		sent += a.headers.Len()
	}
	if sent >= limit {
		t.Errorf("the server took %d bytes of headers", sent)
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the server did not hang up")
	}
	served(t, r, "after")
}

// TestOversizedMessageLength announces more than one message may hold.
func TestOversizedMessageLength(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	a := attack(t, r)
	if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.block(t), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	// gRPC's prefix: not compressed, 4 GiB − 1 bytes to come.
	if err := a.WriteData(1, false, []byte{0, 0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	a.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := a.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		h, ok := f.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		var got string
		for _, field := range h.Fields {
			if field.Name == "grpc-status" {
				got = field.Value
			}
		}
		if got == "" {
			continue // Headers before trailers.
		}
		if got != "8" { // RESOURCE_EXHAUSTED
			t.Errorf("grpc-status %s, want 8", got)
		}
		break
	}
	if err := a.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
