package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/test/bench/fleet"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"
)

// adminConns is how many connections of administrators there are to each
// server.
const adminConns = 8

// clusterSpec says which servers a fleet is given.
type clusterSpec struct {
	servers  int
	etcd     bool
	nodes    *fleet.Nodes
	agentTTL time.Duration
}

// cluster is servers for a fleet: one on its own store, or several on an etcd.
type cluster struct {
	b       *bench
	dir     string
	spec    clusterSpec
	members []*member
	etcd    *exec.Cmd
	store   string // the DataStore section
	foreign bool   // somebody else started the servers
}

// member is one server.
type member struct {
	dir, host       string
	port, profiling int
	cmd             *exec.Cmd
	process         atomic.Int64 // its ID, which another goroutine may read
	admins          []*grpc.ClientConn
}

func (m *member) path(name string) string { return filepath.Join(m.dir, name) }
func (m *member) addr() string            { return net.JoinHostPort(m.host, strconv.Itoa(m.port)) }
func (m *member) pid() int                { return int(m.process.Load()) }

func (b *bench) newCluster(ctx context.Context, spec clusterSpec) (*cluster, error) {
	dir, err := os.MkdirTemp(b.scratch, "cluster-")
	if err != nil {
		return nil, err
	}
	c := &cluster{b: b, dir: dir, spec: spec, store: b.dataStore}
	if spec.etcd {
		if err := c.startEtcd(ctx); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	for i := range spec.servers {
		m := &member{dir: filepath.Join(dir, strconv.Itoa(i)), host: "127.0.0.1"}
		if err := os.Mkdir(m.dir, 0o700); err != nil {
			return nil, err
		}
		if m.port, err = freePort(ctx); err != nil {
			return nil, err
		}
		if m.profiling, err = freePort(ctx); err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
		if err := c.begin(ctx, m); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	return c, nil
}

// begin starts a server and waits until it serves.
func (c *cluster) begin(ctx context.Context, m *member) error {
	if err := os.WriteFile(m.path("server.conf"), []byte(c.config(m)), 0o600); err != nil {
		return err
	}
	var err error
	if m.cmd, err = startIn(m.dir, c.b.server, "server.log", "run", "-config", m.path("server.conf")); err != nil {
		return err
	}
	m.process.Store(int64(m.cmd.Process.Pid))
	for range adminConns - len(m.admins) {
		conn, err := dialUnix(m.path("server.sock"))
		if err != nil {
			return err
		}
		m.admins = append(m.admins, conn)
	}
	err = until(ctx, func() error {
		_, err := bundlev1.NewBundleClient(m.admins[0]).GetBundle(ctx, &bundlev1.GetBundleRequest{}, grpc.WaitForReady(false))
		return err
	})
	if err != nil {
		log, _ := os.ReadFile(m.path("server.log"))
		return fmt.Errorf("the server did not come up: %w\n%s", err, log)
	}
	return nil
}

func (c *cluster) config(m *member) string {
	quoted := make([]string, 0, 1)
	for _, f := range c.spec.nodes.AuthorityFiles() {
		quoted = append(quoted, strconv.Quote(f))
	}
	return fmt.Sprintf(`server {
	trust_domain = %q
	data_dir = %q
	bind_address = "127.0.0.1"
	bind_port = %d
	socket_path = %q
	log_level = "warn"
	agent_ttl = %q
	profiling_enabled = true
	profiling_port = %d
	ratelimit {
		attestation = false
		signing = false
	}
}
plugins {
	%s
	KeyManager "disk" { plugin_data { keys_path = %q } }
	NodeAttestor "x509pop" { plugin_data { ca_bundle_paths = [%s] } }
}
`, trustDomain, m.path("data"), m.port, m.path("server.sock"), c.spec.agentTTL, m.profiling,
		strings.ReplaceAll(c.store, "%s", m.dir), m.path("keys.json"), strings.Join(quoted, ", "))
}

// admins are all connections of administrators.
func (c *cluster) admins() []grpc.ClientConnInterface {
	var out []grpc.ClientConnInterface
	for _, m := range c.members {
		for _, conn := range m.admins {
			out = append(out, conn)
		}
	}
	return out
}

func (c *cluster) addrs() []string {
	var out []string
	for _, m := range c.members {
		out = append(out, m.addr())
	}
	return out
}

func (c *cluster) bundle(ctx context.Context) (*x509bundle.Bundle, error) {
	b, err := bundlev1.NewBundleClient(c.members[0].admins[0]).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	return bundleOf(b)
}

// cpu is what all servers have used, memory what they have.
func (c *cluster) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, m := range c.members {
		used, err := cpu(m.pid())
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// memory is the largest server's.
func (c *cluster) memory() (float64, error) {
	var most float64
	for _, m := range c.members {
		mib, err := anonMiB(m.pid())
		if err != nil {
			return 0, err
		}
		most = max(most, mib)
	}
	return most, nil
}

func (c *cluster) stop() error {
	var errs []error
	for _, m := range c.members {
		for _, conn := range m.admins {
			errs = append(errs, conn.Close())
		}
		errs = append(errs, end(m.cmd))
	}
	if c.foreign {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, end(c.etcd), os.RemoveAll(c.dir))...)
}

// startIn runs a program with its output in the folder.
func startIn(dir, program, log string, args ...string) (*exec.Cmd, error) {
	f, err := os.OpenFile(filepath.Join(dir, log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()                       //nolint:errcheck // the child has its own descriptor
	cmd := exec.Command(program, args...) //nolint:gosec,noctx // stopped by end, politely
	cmd.Stdout, cmd.Stderr = f, f
	return cmd, cmd.Start()
}
