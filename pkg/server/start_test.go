package server

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/credence-id/credence/pkg/unixsock"
)

// fails runs a server that cannot start, and returns why.
func fails(t *testing.T, cfg Config) error {
	t.Helper()
	if cfg.Listener == nil && cfg.Server.BindPort == 0 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listener = l
	}
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err = srv.Run(ctx)
	if err == nil {
		t.Fatal("the server ran")
	}
	if cfg.Listener != nil {
		if _, err := cfg.Listener.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is still open: %v", err)
		}
	}
	return err
}

// says checks that an error is one line that has all of the texts.
func says(t *testing.T, err error, texts ...string) {
	t.Helper()
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line:\n%v", err)
	}
	for _, want := range texts {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

func TestBusyPort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := testConfig(t)
	cfg.Server.BindAddress = "127.0.0.1"
	cfg.Server.BindPort = l.Addr().(*net.TCPAddr).Port
	says(t, fails(t, cfg), "server.bind_port", "in use", "choose another port")
	if _, err := os.Stat(cfg.Server.DataDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a server that cannot listen made its data_dir: %v", err)
	}
}

// A side listener that cannot start keeps the server from starting at all.
func TestBusySidePort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for key, set := range map[string]func(*Config){
		"health_checks.bind_port": func(c *Config) {
			c.HealthChecks = telemetry.HealthConfig{ListenerEnabled: true, BindAddress: "127.0.0.1", BindPort: strconv.Itoa(port)}
		},
		"telemetry.Prometheus.port": func(c *Config) {
			c.Telemetry.Prometheus = &telemetry.PrometheusConfig{Host: "127.0.0.1", Port: port}
		},
	} {
		cfg := testConfig(t)
		set(&cfg)
		says(t, fails(t, cfg), key, "in use", "choose another port")
		if _, err := os.Stat(cfg.Server.DataDir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a server that cannot listen made its data_dir: %v", key, err)
		}
	}
}

func TestForeignAddress(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.BindAddress, cfg.Server.BindPort = "192.0.2.1", 8081
	says(t, fails(t, cfg), "server.bind_address", "192.0.2.1")
}

func TestAdminSocket(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.SocketPath = filepath.Join(t.TempDir(), "private", "api.sock")
	r := start(t, cfg)
	for path, want := range map[string]fs.FileMode{cfg.Server.SocketPath: 0o770, filepath.Dir(cfg.Server.SocketPath): 0o750} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, info.Mode(), err, want)
		}
	}
	// Another server does not push a living one aside.
	second := testConfig(t)
	second.Server.SocketPath = cfg.Server.SocketPath
	err := fails(t, second)
	says(t, err, "server.socket_path", cfg.Server.SocketPath)
	if !errors.Is(err, unixsock.ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if err := calls["GetBundle"](t.Context(), r.admin(t)); err != nil {
		t.Errorf("the first server: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cfg.Server.SocketPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	// What a server that was killed leaves is taken over.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Server.SocketPath, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	third := start(t, second)
	if err := calls["GetBundle"](t.Context(), third.admin(t)); err != nil {
		t.Error(err)
	}
}

// TestAdminSocketIsMadeAgain: a cleaner of temporary directories removes it.
func TestAdminSocketIsMadeAgain(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.SocketPath = filepath.Join(t.TempDir(), "private", "api.sock")
	r := start(t, cfg)
	before := r.admin(t)
	if err := calls["GetBundle"](t.Context(), before); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(cfg.Server.SocketPath)); err != nil {
		t.Fatal(err)
	}
	after := r.admin(t)
	soon(t, "the socket answers again", func(ctx context.Context) bool { return calls["GetBundle"](ctx, after) == nil })
	if err := calls["GetBundle"](t.Context(), before); err != nil {
		t.Errorf("on the connection of before: %v", err)
	}
}

func TestUnusableDataDir(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t)
	cfg.Server.DataDir = filepath.Join(file, "data")
	says(t, fails(t, cfg), "server.data_dir", file)
	t.Run("unwritable", func(t *testing.T) {
		if os.Getuid() == 0 {
			t.Skip("root may write everywhere; run as another user")
		}
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		cfg := testConfig(t)
		cfg.Server.DataDir = dir
		says(t, fails(t, cfg), "server.data_dir", "writable", dir)
	})
}

func TestSecondServerOnTheSameStore(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	start(t, cfg)
	second := testConfig(t)
	second.Server.DataDir = cfg.Server.DataDir
	err := fails(t, second)
	says(t, err, "credence.db", "another data_dir")
	if !errors.Is(err, store.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}

func TestStoreOfAnotherTrustDomain(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	if err := start(t, cfg).stop(); err != nil {
		t.Fatal(err)
	}
	cfg.Server.TrustDomain = "other.test"
	err := fails(t, cfg)
	says(t, err, testDomain, "trust_domain")
	if !errors.Is(err, registry.ErrTrustDomain) {
		t.Errorf("got %v, want ErrTrustDomain", err)
	}
}

func TestDamagedServerID(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	if err := start(t, cfg).stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Server.DataDir, serverIDFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the server's ID has mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, fails(t, cfg), path, "restore")
}

func parsePlugins(t *testing.T, text string) config.Plugins {
	t.Helper()
	f, err := config.Parse("test", []byte("plugins {\n"+text+"\n}"))
	if err != nil {
		t.Fatal(err)
	}
	var c Config
	if err := f.Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c.Plugins
}

// TestRestart keeps the authorities, the entries and the agents, and serves both
// an agent's old certificate and what it registered.
func TestRestart(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Plugins = config.Plugins{plugin(typeKeyManager, "disk")}
	r := start(t, cfg)
	agent := r.attest(t)
	id := r.register(t, &types.Entry{SpiffeId: wireID("/w"), ParentId: wireID(agent.id.Path())})
	before := r.bundle(t)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(cfg.Server.DataDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data_dir has mode %v, %v", info.Mode(), err)
	}

	r = start(t, cfg)
	if after := r.bundle(t); len(after.X509Authorities) != 1 || string(after.X509Authorities[0].Asn1) != string(before.X509Authorities[0].Asn1) {
		t.Error("the bundle is another one after a restart")
	}
	resp, err := entryv1.NewEntryClient(r.dial(t, &agent.cert)).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
	if err != nil || len(resp.Entries) != 1 || resp.Entries[0].Id != id {
		t.Errorf("the agent's entries: %v, %v", resp, err)
	}
}

// TestStop ends what is open, in time, and says so to health watchers.
func TestStop(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	agent := r.attest(t)
	idle, err := entryv1.NewEntryClient(agent.conn).SyncAuthorizedEntries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := idle.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: nil}); err != nil {
		t.Fatal(err)
	}
	watch, err := healthv1.NewHealthClient(r.admin(t)).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		h, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if h.Status == healthv1.HealthCheckResponse_SERVING {
			break
		}
	}
	begin := time.Now()
	if err := r.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(begin); took > stopGrace+2*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the health watch ended with %v, want Unavailable", err)
	}
	var d net.Dialer
	if _, err := d.DialContext(t.Context(), "tcp", r.Address.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the stop: %v", err)
	}
}
