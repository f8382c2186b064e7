package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"testing"
)

// TestProfiling serves what is named, to this machine and by its own names only.
func TestProfiling(t *testing.T) {
	t.Parallel()
	if lis, err := (Profiling{ProfilingPort: 1}).Listen(t.Context(), "server"); lis != nil || err != nil {
		t.Errorf("not enabled: %v, %v", lis, err)
	}
	serve := func(names ...string) string {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p := Profiling{ProfilingEnabled: true, ProfilingPort: free.Addr().(*net.TCPAddr).Port, ProfilingNames: names}
		if _, err := p.Listen(t.Context(), "server"); err == nil {
			t.Error("a busy port is no error")
		}
		if err := free.Close(); err != nil {
			t.Fatal(err)
		}
		lis, err := p.Listen(t.Context(), "server")
		if err != nil {
			t.Fatal(err)
		}
		if ip := lis.Addr().(*net.TCPAddr).IP; !ip.IsLoopback() {
			t.Fatalf("it listens at %s", ip)
		}
		ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- p.NewListener(slog.New(slog.DiscardHandler)).Serve(ctx, lis) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return lis.Addr().String()
	}
	all, some := serve(), serve("heap", "cpu")
	for _, test := range []struct {
		address, method, path, host string
		want                        int
	}{
		{all, http.MethodGet, "/debug/pprof/", "", 200},
		{all, http.MethodGet, "/debug/pprof/goroutine", "", 200},
		{all, http.MethodGet, "/debug/pprof/profile?seconds=1", "", 200},
		{all, http.MethodGet, "/debug/pprof/profile?seconds=100000", "", 400},
		{all, http.MethodGet, "/debug/pprof/nonsense", "", 404},
		{all, http.MethodGet, "/debug/pprof/cmdline", "", 404},
		{all, http.MethodGet, "/", "", 404},
		{all, http.MethodPost, "/debug/pprof/goroutine", "", 405},
		{some, http.MethodGet, "/debug/pprof/", "", 404},
		{some, http.MethodGet, "/debug/pprof/heap", "", 200},
		{some, http.MethodGet, "/debug/pprof/goroutine", "", 404},
		{some, http.MethodGet, "/debug/pprof/trace?seconds=1", "", 404},
		{some, http.MethodGet, "/debug/pprof/heap", "localhost:1", 200},
		{some, http.MethodGet, "/debug/pprof/heap", "[::1]", 200},
		{some, http.MethodGet, "/debug/pprof/heap", "rebound.example:80", 421},
		{some, http.MethodGet, "/debug/pprof/heap", "192.0.2.1", 421},
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, fmt.Sprintf("http://%s%s", test.address, test.path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = test.host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != test.want {
			t.Errorf("%s %s (Host %q): %d, want %d", test.method, test.path, test.host, resp.StatusCode, test.want)
		}
	}
}
