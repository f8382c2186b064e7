package server

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/store"
)

const testDomain = "example.org"

// plugin is a section without data.
func plugin(kind, name string) config.Plugin {
	return config.Plugin{Type: kind, Name: name, Enabled: true}
}

// testConfig is a server on loopback with memory keys and the embedded store in
// a directory of its own. The directory is short, for the socket in it.
func testConfig(t testing.TB) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{
		Server: Settings{
			TrustDomain: testDomain,
			DataDir:     filepath.Join(dir, "data"),
			SocketPath:  filepath.Join(dir, "api.sock"),
			// Tests attest many agents from one address.
			RateLimit: RateLimit{Attestation: new(bool)},
		},
		Plugins: config.Plugins{plugin(typeKeyManager, "memory")},
	}
}

// logBuffer collects what a server logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// running is a server that serves.
type running struct {
	Bound
	log *logBuffer
	// inside is for what no API can do yet, such as changing the bundle.
	inside *control
	// way is to the store that the server shares with others, if it does.
	way *tether
	// ended is set by tests whose server ends by itself.
	ended bool
	done  chan struct{} // closed when Run has returned
	stop  func() error  // stops it and returns what Run returned; may be called twice
}

// start runs a server until the test ends.
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	return startOn(t, cfg, nil)
}

// startOn is start with the store at the end of the tether, if it is not nil, in
// place of the embedded one.
func startOn(t testing.TB, cfg Config, way *tether) *running {
	t.Helper()
	r := &running{log: &logBuffer{}, way: way}
	if cfg.Logger == nil && cfg.Log == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if cfg.Listener == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listener = l
	}
	bound := make(chan Bound, 1)
	cfg.OnReady = func(b Bound) { bound <- b }
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if way != nil {
		srv.choice.store = func(context.Context, storeEnv) (store.Store, error) { return way, nil }
	}
	srv.assembled = func(k *control) {
		r.inside = k
		if way != nil && way.loading {
			way.set(&way.slow, true)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	r.done = make(chan struct{})
	go func() {
		err := srv.Run(ctx)
		close(r.done)
		done <- err
	}()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil && !r.ended {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("server's log:\n%s", r.log)
		}
	})
	select {
	case r.Bound = <-bound:
	case err := <-done:
		done <- nil
		t.Fatalf("Run: %v", err)
	case <-time.After(patience):
		t.Fatalf("server is not ready after %v", patience)
	}
	return r
}

// admin dials the admin's socket.
func (r *running) admin(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+r.Admin.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
