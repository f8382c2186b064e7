package failover

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/server"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	trustDomain = "failover.test"
	// Lives of SVIDs, short so that all of them are renewed in a test: after half
	// of that, ± 10 %.
	agentTTL = 24 * time.Second
	svidTTL  = 24 * time.Second
)

// soaking says that the long form of the tests is wanted.
func soaking() bool { return os.Getenv("SOAK") != "" }

// journal collects a log.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return bytes.Count(j.buf.Bytes(), []byte(text))
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// cluster is servers over one store.
type cluster struct {
	t       *testing.T
	dir     string
	store   store.Store
	servers []*node
}

// node is one of them, behind its proxy: one data_dir, started any number of
// times.
type node struct {
	t       *testing.T
	cfg     server.Config
	addr    string
	journal *journal
	proxy   *proxy
	admin   *grpc.ClientConn

	stop func() error
}

// newCluster starts n servers, which have as long for draining.
func newCluster(t *testing.T, n int, drain time.Duration) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "cfo-") // short, for the sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, dir: dir, store: s}
	for i := range n {
		c.servers = append(c.servers, c.add(i, drain))
	}
	return c
}

func (c *cluster) add(i int, drain time.Duration) *node {
	c.t.Helper()
	dir := filepath.Join(c.dir, fmt.Sprint("s", i))
	attestation := false
	n := &node{t: c.t, journal: &journal{}, cfg: server.Config{
		Server: server.Settings{
			TrustDomain: trustDomain, DataDir: filepath.Join(dir, "data"), SocketPath: filepath.Join(dir, "api.sock"),
			AgentTTL: agentTTL, DefaultX509SVIDTTL: svidTTL, DrainTimeout: &drain,
			RateLimit: server.RateLimit{Attestation: &attestation}, // All agents come from one address.
		},
		Plugins: plugins(c.t, `KeyManager "disk" { plugin_data {} }`),
		Store:   c.store,
	}}
	n.cfg.Logger = n.journal.logger().With("server", i)
	n.start()
	n.proxy = newProxy(c.t, n.addr)
	conn, err := grpc.NewClient("unix:"+n.cfg.Server.SocketPath, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	n.admin = conn
	c.t.Cleanup(func() {
		_ = conn.Close()
		if err := n.stop(); err != nil {
			c.t.Errorf("server %d: %v", i, err)
		}
		if c.t.Failed() {
			c.t.Logf("server %d:\n%s", i, tail(n.journal.String()))
		}
	})
	return n
}

// start runs the server, at the address it had.
func (n *node) start() {
	n.t.Helper()
	addr := n.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.addr = l.Addr().String()
	cfg, ready := n.cfg, make(chan struct{})
	cfg.Listener, cfg.OnReady = l, func(server.Bound) { close(ready) }
	srv, err := server.New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	n.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		n.t.Fatalf("server: %v", err)
	}
}

// plugins reads a section plugins.
func plugins(t *testing.T, text string) config.Plugins {
	t.Helper()
	f, err := config.Parse("test", []byte("plugins {\n"+text+"\n}"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Plugins config.Plugins `hcl:"plugins"`
	}
	if err := f.Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c.Plugins
}

// bundlePEM is the trust domain's bundle.
func (c *cluster) bundlePEM() []byte {
	c.t.Helper()
	b, err := bundlev1.NewBundleClient(c.servers[0].admin).GetBundle(c.t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	var out bytes.Buffer
	for _, a := range b.GetX509Authorities() {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.GetAsn1()}); err != nil {
			c.t.Fatal(err)
		}
	}
	return out.Bytes()
}

// addresses are where agents find the servers.
func (c *cluster) addresses() []string {
	var out []string
	for _, n := range c.servers {
		out = append(out, n.proxy.addr())
	}
	return out
}

// tail is the end of a long text.
func tail(text string) string {
	const most = 8 << 10
	if len(text) <= most {
		return text
	}
	return "[…]\n" + text[len(text)-most:]
}
