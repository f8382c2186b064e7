package telemetry

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func healthy(t *testing.T) (base, addr string) {
	t.Helper()
	ok := func(context.Context) error { return nil }
	l, err := NewHealth(HealthConfig{LivePath: "/live", ReadyPath: "/ready"}, ok, ok, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	base = serve(t, l)
	return base, strings.TrimPrefix(base, "http://")
}

func dialTCP(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Whoever opens connections and says nothing keeps nobody out.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	base, addr := healthy(t)
	conns := make([]net.Conn, maxConns)
	for i := range conns {
		conns[i] = dialTCP(t, addr)
	}
	time.Sleep(connGrace + 100*time.Millisecond)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 3 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s, %v", resp.Status, err)
		}
	}
	if err := conns[0].SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conns[0].Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("the oldest connection stays: %v", err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// Headers have a size and a time.
func TestHeadersAreBounded(t *testing.T) {
	t.Parallel()
	_, addr := healthy(t)
	// net/http takes 4 KiB more than it is told.
	for n, want := range map[int]string{maxHeaderBytes - 200: "200", maxHeaderBytes + 5000: "431"} {
		conn := dialTCP(t, addr)
		if _, err := io.WriteString(conn, "GET /live HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", n)+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(line, want) {
			t.Errorf("%d bytes of headers: %q, %v, want %s", n, line, err, want)
		}
	}
	conn := dialTCP(t, addr)
	begin := time.Now()
	for time.Since(begin) < headerTimeout+5*time.Second {
		if _, err := io.WriteString(conn, "G"); err != nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if took := time.Since(begin); took < headerTimeout-time.Second || took > headerTimeout+4*time.Second {
		t.Errorf("headers that do not end were waited for for %v, want %v", took, headerTimeout)
	}
}
