package fleet

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/server"
	"github.com/credence-id/credence/test/bench/dataset"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// running is a real server in this process.
type running struct {
	addr  string
	admin *grpc.ClientConn
	stop  func()
}

// start runs a server in dir, which another one may have run in before.
func start(t *testing.T, dir, addr string, nodes *Nodes) *running {
	t.Helper()
	file := filepath.Join(dir, "server.conf")
	text := fmt.Sprintf(`server {
	trust_domain = "example.org"
	data_dir = %q
	socket_path = %q
	log_level = "error"
	agent_ttl = "10s"
	ratelimit { attestation = false }
}
plugins {
	DataStore "bolt" {}
	KeyManager "disk" { plugin_data { keys_path = %q } }
	NodeAttestor "x509pop" { plugin_data { ca_bundle_paths = ["%s"] } }
}
`, filepath.Join(dir, "data"), filepath.Join(dir, "api.sock"), filepath.Join(dir, "keys.json"), strings.Join(nodes.AuthorityFiles(), `", "`))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := server.Load(file, false)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", addr); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	cfg.OnReady = func(server.Bound) { close(ready) }
	s, err := server.New(*cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Run(ctx); err != nil {
			t.Errorf("the server: %v", err)
		}
	}()
	r := &running{addr: cfg.Listener.Addr().String()}
	r.admin, err = grpc.NewClient("unix:"+filepath.Join(dir, "api.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.stop = sync.OnceFunc(func() {
		_ = r.admin.Close()
		cancel()
		<-ended
	})
	t.Cleanup(r.stop)
	select {
	case <-ready:
	case <-ended:
		t.Fatal("the server ended")
	}
	return r
}

func (r *running) bundle(t *testing.T) *x509bundle.Bundle {
	t.Helper()
	b, err := bundlev1.NewBundleClient(r.admin).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := x509bundle.New(td)
	for _, a := range b.GetX509Authorities() {
		c, err := x509.ParseCertificate(a.GetAsn1())
		if err != nil {
			t.Fatal(err)
		}
		out.AddX509Authority(c)
	}
	return out
}

// TestFleetConverges brings 20 agents of two groups up on a real server, which
// then restarts. Each has the entries of its group, gets SVIDs for them, hears of
// changes, and renews its own SVID.
func TestFleetConverges(t *testing.T) {
	t.Parallel()
	const agents, entries = 20, 300
	dir := t.TempDir()
	nodes, err := LoadNodes(filepath.Join(dir, "nodes"), 2)
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, "127.0.0.1:0", nodes)
	data := dataset.Spec{
		TrustDomain: td, Entries: entries, Aliases: nodes.Selectors(), Even: true,
		Federates: []string{"other.test"}, FederatesShare: 0.1,
	}
	if err := dataset.SetBundles(t.Context(), r.admin, data.Federates); err != nil {
		t.Fatal(err)
	}
	if _, err := dataset.Create(t.Context(), r.admin, data.AliasEntries()...); err != nil {
		t.Fatal(err)
	}
	if _, err := dataset.Fill(t.Context(), []grpc.ClientConnInterface{r.admin}, data.All()); err != nil {
		t.Fatal(err)
	}
	f, err := New(Config{Bundle: r.bundle(t), Servers: []string{r.addr}, Nodes: nodes, Agents: agents})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	await := func(what string) {
		t.Helper()
		if err := f.Await(ctx, agents); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := f.Held(); got != agents*entries/2 {
			t.Errorf("%s: the agents hold %d entries, want %d", what, got, agents*entries/2)
		}
	}
	await("first")
	r.change(t, f, agents/2)

	if err := f.Rotate(ctx, Rotation{Warm: 10, Every: time.Second, GiveUp: time.Minute, Count: 2 * agents}); err != nil {
		t.Fatal(err)
	}
	if s := f.Stats().Sample(); len(s.Minted) != 2*agents || s.Missed > 0 {
		t.Errorf("%d SVIDs, %d missed, failures %v; want %d", len(s.Minted), s.Missed, s.Failed, 2*agents)
	}

	r.stop()
	again := start(t, dir, r.addr, nodes)
	await("after the restart")
	again.change(t, f, agents/2)
	if s := f.Stats().Sample(); len(s.Gaps) < agents || s.Diverged > 0 {
		t.Errorf("%d gaps, want one for each of %d agents at least; %d digests differed", len(s.Gaps), agents, s.Diverged)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// change makes, changes and removes an entry of the first group and waits each
// time until all of its agents know.
func (r *running) change(t *testing.T, f *Fleet, agents int) {
	t.Helper()
	client := entryv1.NewEntryClient(r.admin)
	e := &types.Entry{
		Id: "changing-" + strconv.Itoa(agents), SpiffeId: &types.SPIFFEID{TrustDomain: td.Name(), Path: "/changing"},
		ParentId: &types.SPIFFEID{TrustDomain: td.Name(), Path: "/cluster/0"}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:0"}},
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"created", func() error { _, err := dataset.Create(t.Context(), r.admin, e); return err }},
		{"updated", func() error {
			e.Hint = "new"
			_, err := client.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}})
			return err
		}},
		{"deleted", func() error {
			_, err := client.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{e.GetId()}})
			return err
		}},
	} {
		p := f.Expect(e.GetId(), agents)
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := p.Wait(ctx)
		cancel()
		f.Forget(e.GetId())
		if err != nil || len(p.Took()) != agents {
			t.Fatalf("%s: %d agents know, want %d: %v", step.name, len(p.Took()), agents, err)
		}
	}
}
