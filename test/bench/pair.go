package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

const trustDomain = "example.org"

var (
	td = spiffeid.RequireTrustDomainFromString(trustDomain)
	// alias is the SPIFFE ID of the fleet's first node alias.
	alias = spiffeid.RequireFromPath(td, "/cluster/0")
)

// build makes the binaries as `make build` does, unless a folder has them.
func (b *bench) build(ctx context.Context, bin string) error {
	if bin != "" {
		b.server, b.agent = filepath.Join(bin, "credence-server"), filepath.Join(bin, "credence-agent")
		return nil
	}
	b.server, b.agent = filepath.Join(b.scratch, "credence-server"), filepath.Join(b.scratch, "credence-agent")
	for out, pkg := range map[string]string{b.server: "./cmd/server", b.agent: "./cmd/agent"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg) //nolint:gosec // both from the literal above
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", pkg, err, text)
		}
	}
	return nil
}

// spire are the programs of a SPIRE in a directory, with its default store.
func spire(dir, scratch string) *bench {
	return &bench{
		server: filepath.Join(dir, "spire-server"), agent: filepath.Join(dir, "spire-agent"), scratch: scratch,
		dataStore: `DataStore "sql" {
		plugin_data {
			database_type = "sqlite3"
			connection_string = "%s/datastore.sqlite3"
		}
	}`,
	}
}

// pair is a server and, once joined, an agent.
type pair struct {
	b             *bench
	dir           string
	port          int
	server, agent *exec.Cmd
	admin         *grpc.ClientConn
	agentID       spiffeid.ID
}

func (b *bench) newPair(ctx context.Context) (*pair, error) {
	dir, err := os.MkdirTemp(b.scratch, "pair-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // made for this run
		return nil, err
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	p := &pair{b: b, dir: dir, port: port}
	if err := p.writeConfigs(); err != nil {
		return nil, err
	}
	p.admin, err = dialUnix(p.path("server.sock"))
	return p, err
}

func freePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (p *pair) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pair) writeConfigs() error {
	server := fmt.Sprintf(`server {
	trust_domain = %q
	data_dir = %q
	bind_address = "127.0.0.1"
	bind_port = %d
	socket_path = %q
	log_level = "warn"
	ratelimit {
		attestation = false
		signing = false
	}
}
plugins {
	%s
	KeyManager "memory" { plugin_data {} }
	NodeAttestor "join_token" { plugin_data {} }
}
`, trustDomain, p.path("server"), p.port, p.path("server.sock"), strings.ReplaceAll(p.b.dataStore, "%s", p.dir))
	agent := fmt.Sprintf(`agent {
	trust_domain = %q
	data_dir = %q
	server_address = "127.0.0.1"
	server_port = %d
	socket_path = %q
	trust_bundle_path = %q
	log_level = "warn"
}
plugins {
	KeyManager "memory" { plugin_data {} }
	NodeAttestor "join_token" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`, trustDomain, p.path("agent"), p.port, p.path("agent.sock"), p.path("bundle.pem"))
	return errors.Join(os.WriteFile(p.path("server.conf"), []byte(server), 0o600), os.WriteFile(p.path("agent.conf"), []byte(agent), 0o600))
}

// start runs a program with its output in the pair's folder.
func (p *pair) start(program, log string, args ...string) (*exec.Cmd, error) {
	return startIn(p.dir, program, log, args...)
}

func (p *pair) startServer() (err error) {
	p.server, err = p.start(p.b.server, "server.log", "run", "-config", p.path("server.conf"))
	return err
}

// join takes the bundle and a token to an agent and starts it.
func (p *pair) join(ctx context.Context) error {
	if err := p.startServer(); err != nil {
		return err
	}
	var bundle *types.Bundle
	err := until(ctx, func() (err error) {
		bundle, err = bundlev1.NewBundleClient(p.admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		return err
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.path("bundle.pem"), pemOf(bundle), 0o600); err != nil {
		return err
	}
	return p.startAgent(ctx)
}

func (p *pair) startAgent(ctx context.Context) error {
	token, err := p.token(ctx)
	if err != nil {
		return err
	}
	p.agentID, err = spiffeid.FromSegments(spiffeid.RequireTrustDomainFromString(trustDomain), "spire", "agent", "join_token", token)
	if err != nil {
		return err
	}
	p.agent, err = p.start(p.b.agent, "agent.log", "run", "-config", p.path("agent.conf"), "-joinToken", token)
	return err
}

func (p *pair) token(ctx context.Context) (string, error) {
	t, err := agentv1.NewAgentClient(p.admin).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600})
	return t.GetValue(), err
}

// stop ends what was started and removes the folder.
func (p *pair) stop() error {
	var errs []error
	if p.admin != nil {
		errs = append(errs, p.admin.Close())
	}
	errs = append(errs, end(p.agent), end(p.server), os.RemoveAll(p.dir))
	return errors.Join(errs...)
}

func end(cmd *exec.Cmd) error {
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	kill := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && !exit.Exited() {
		return nil // it had not come to handling the signal yet
	}
	return err
}

// until calls try until it works, for at most a minute.
func until(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

func dialUnix(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///unix",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(64<<20)))
}

// entryOf is an entry shaped like a Kubernetes workload's.
func entryOf(parent spiffeid.ID, path string, selectors ...string) *types.Entry {
	e := &types.Entry{
		SpiffeId: &types.SPIFFEID{TrustDomain: trustDomain, Path: path},
		ParentId: &types.SPIFFEID{TrustDomain: trustDomain, Path: parent.Path()},
	}
	for _, s := range selectors {
		typ, value, _ := strings.Cut(s, ":")
		e.Selectors = append(e.Selectors, &types.Selector{Type: typ, Value: value})
	}
	return e
}

func create(ctx context.Context, conn grpc.ClientConnInterface, entries ...*types.Entry) ([]string, error) {
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: entries, OutputMask: &types.EntryMask{}})
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(entries))
	for _, r := range resp.GetResults() {
		if codes.Code(r.GetStatus().GetCode()) != codes.OK {
			return nil, errors.New(r.GetStatus().GetMessage())
		}
		ids = append(ids, r.GetEntry().GetId())
	}
	return ids, nil
}

// fill makes n entries with random paths, in batches of 50.
func fill(ctx context.Context, conn grpc.ClientConnInterface, parent spiffeid.ID, n int) error {
	for done := 0; done < n; done += 50 {
		if _, err := create(ctx, conn, batchOf(parent, min(50, n-done))...); err != nil {
			return err
		}
	}
	return nil
}

func batchOf(parent spiffeid.ID, n int) []*types.Entry {
	batch := make([]*types.Entry, 0, n)
	for range n {
		name := rand.Text()
		batch = append(batch, entryOf(parent, "/ns/bench/sa/"+name, "k8s:ns:bench", "k8s:sa:"+name))
	}
	return batch
}

func newCSR(id string) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.CertificateRequest{}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			return nil, nil, err
		}
		tmpl.URIs = []*url.URL{u}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	return csr, key, err
}

func bundleOf(b *types.Bundle) (*x509bundle.Bundle, error) {
	return x509bundle.Parse(spiffeid.RequireTrustDomainFromString(trustDomain), pemOf(b))
}
