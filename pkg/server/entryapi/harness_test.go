package entryapi

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/registry/registrytest"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("example.org")
	agentID = spiffeid.RequireFromPath(td, "/spire/agent/join_token/a")
)

// fixture is the service over a real store, called through gRPC.
type fixture struct {
	entryv1.EntryClient
	*registrytest.World
}

// newFixture serves the service to one agent that is also the local admin.
func newFixture(t testing.TB) *fixture {
	t.Helper()
	graph := entitle.New(td)
	w := registrytest.New(t, td, func(c *registry.Commit) { graph.Apply(c) })
	return &fixture{World: w, EntryClient: entryv1.NewEntryClient(serve(t, New(Config{
		TrustDomain: td, Registry: w.Registry, Index: w.Index, Entitlements: graph, Logger: w.Logger, Audit: audit.New(w.Logger), Fresh: w.Fresh,
	})))}
}

// serve puts the caller into the context and maps errors, as the server does.
func serve(t testing.TB, service *Service) *grpc.ClientConn {
	t.Helper()
	caller := policy.Caller{Roles: policy.Local | policy.Agent, ID: agentID, Peer: "uid:0"}
	log := slog.New(slog.DiscardHandler)
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			resp, err := handler(policy.NewContext(ctx, caller), req)
			return resp, rpcerr.Call(ctx, log, err)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			err := handler(srv, &withCaller{ss, policy.NewContext(ss.Context(), caller)})
			return rpcerr.Call(ss.Context(), log, err)
		}),
	)
	entryv1.RegisterEntryServer(srv, service)
	l := bufconn.Listen(1 << 20)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := srv.Serve(l); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		serving.Wait()
	})
	return conn
}

type withCaller struct {
	grpc.ServerStream
	ctx context.Context
}

func (w *withCaller) Context() context.Context { return w.ctx }

func wireID(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: td.Name(), Path: path}
}

// entry is a valid registration below the agent.
func entry(path string, selectors ...string) *types.Entry {
	e := &types.Entry{SpiffeId: wireID(path), ParentId: wireID(agentID.Path())}
	if len(selectors) == 0 {
		selectors = []string{"unix:uid:0"}
	}
	for _, text := range selectors {
		s, err := attest.ParseSelector(text)
		if err != nil {
			panic(err)
		}
		e.Selectors = append(e.Selectors, &types.Selector{Type: s.Type, Value: s.Value})
	}
	return e
}

// create makes entries, all of which must be new, and returns them as answered.
func (f *fixture) create(t testing.TB, entries ...*types.Entry) []*types.Entry {
	t.Helper()
	resp, err := f.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: entries})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]*types.Entry, len(entries))
	for i, r := range resp.Results {
		if r.Status.Code != 0 {
			t.Fatalf("creating entry %d: %v", i, r.Status)
		}
		out[i] = r.Entry
	}
	return out
}

// fill makes n entries of no particular interest.
func (f *fixture) fill(t testing.TB, n int) {
	t.Helper()
	for from := 0; from < n; from += 1000 {
		var batch []*types.Entry
		for i := from; i < min(n, from+1000); i++ {
			batch = append(batch, entry(fmt.Sprintf("/fill/%d", i), fmt.Sprintf("k8s:ns:ns-%d", i%100), fmt.Sprintf("k8s:sa:sa-%d", i)))
		}
		f.create(t, batch...)
	}
}

// attest makes the agent of the fixture an attested one.
func (f *fixture) attest(t testing.TB) {
	t.Helper()
	_, err := f.Registry.AttestAgent(t.Context(), &registry.Agent{
		ID: agentID, AttestationType: "join_token", Serial: "1", NotAfter: time.Now().Add(time.Hour),
	}, "", nil)
	if err != nil {
		t.Fatal(err)
	}
}

func codeOf(s *types.Status) codes.Code { return codes.Code(s.GetCode()) }
