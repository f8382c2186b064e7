package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// TestCutOffServer goes through what a server does that loses its store, while it
// may still issue, when it may not any more, and when it is back.
func TestCutOffServer(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	c := newCluster(t, 2, func(cfg *Config) { cfg.Server.MaxStaleness = limit })
	cut, other := c.servers[0], c.servers[1]
	good, bad := cut.attest(t), cut.attest(t)
	entry := cut.register(t, &types.Entry{SpiffeId: wireID("/x"), ParentId: wireID(good.id.Path())})
	feed := watch(t, good.conn)
	feed.synced(t)
	anyone := cut.dial(t, nil)
	if _, err := bundlev1.NewBundleClient(anyone).GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); err != nil {
		t.Fatal(err)
	}

	cut.way.cut()
	begin := time.Now()
	other.ban(t, bad)
	cut.refusesReadsAndWrites(t)
	if err := good.sign(t, good.conn, entry); err != nil {
		t.Errorf("cut off for %v, issuing stopped: %v", time.Since(begin), err)
	}
	if again := watch(t, good.at(t, cut)); again.synced(t) {
		feed = again // A server that is cut off still takes those whom it knows.
	}
	if err := cut.inside.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "cut off from the store") {
		t.Errorf("ready: %v", err)
	}

	err := feed.end(t)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "max_staleness") {
		t.Errorf("the feed ended with %v", err)
	}
	// The last proof may have been a while before the cut.
	if after := time.Since(begin); after < limit-cut.inside.fresh.every() {
		t.Errorf("the feed ended after %v, before max_staleness", after)
	}
	if err := good.sign(t, good.conn, entry); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "max_staleness") {
		t.Errorf("cut off for %v, a request to issue got %v", time.Since(begin), err)
	}
	if _, err := bundlev1.NewBundleClient(anyone).GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); err != nil {
		t.Errorf("GetBundle: %v", err)
	}
	cut.mint(t, "/by-hand") // The operator's right is the socket, not the store's.
	if err := cut.inside.live(t.Context()); err != nil {
		t.Errorf("live: %v", err)
	}
	if age := cut.inside.fresh.age(time.Now()); age < limit {
		t.Errorf("staleness is shown as %v", age)
	}
	h, err := healthv1.NewHealthClient(cut.admin(t)).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || h.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}

	cut.way.heal()
	soon(t, "issuing goes on by itself", func(context.Context) bool { return good.sign(t, good.conn, entry) == nil })
	if err := bad.sign(t, bad.conn, entry); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the agent that was banned meanwhile: %v", err)
	}
	if err := cut.inside.ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
	watch(t, good.at(t, cut)).synced(t)
}

// refusesReadsAndWrites checks that nothing old is read and nothing hangs.
func (r *running) refusesReadsAndWrites(t *testing.T) {
	t.Helper()
	begin := time.Now()
	conn := r.admin(t)
	for name, call := range map[string]func() error{
		"ListEntries": func() error {
			_, err := entryv1.NewEntryClient(conn).ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
			return err
		},
		"ListAgents": func() error {
			_, err := agentv1.NewAgentClient(conn).ListAgents(t.Context(), &agentv1.ListAgentsRequest{})
			return err
		},
		"CreateJoinToken": func() error {
			_, err := agentv1.NewAgentClient(conn).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.Unavailable {
			t.Errorf("%s while cut off: %v", name, err)
		}
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the refusals took %v", took)
	}
}

// feedClient is one stream of the feed.
type feedClient struct {
	stream grpc.BidiStreamingClient[feedv1.WatchRequest, feedv1.WatchResponse]
	got    chan *feedv1.WatchResponse
	err    chan error
}

// watch opens the feed, holding nothing.
func watch(t testing.TB, conn *grpc.ClientConn) *feedClient {
	t.Helper()
	stream, err := feedv1.NewFeedClient(conn).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{}}}); err != nil {
		t.Fatal(err)
	}
	f := &feedClient{stream: stream, got: make(chan *feedv1.WatchResponse, 1024), err: make(chan error, 1)}
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				f.err <- err
				return
			}
			f.got <- m
		}
	}()
	return f
}

// synced waits for the agent to hold all it may have.
func (f *feedClient) synced(t testing.TB) bool {
	t.Helper()
	f.until(t, "synced", func(m *feedv1.WatchResponse) bool { return m.GetSynced() != nil })
	return true
}

// until waits for a message.
func (f *feedClient) until(t testing.TB, what string, is func(*feedv1.WatchResponse) bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case m := <-f.got:
			if is(m) {
				return
			}
		case err := <-f.err:
			f.err <- err
			t.Fatalf("waiting for %s, the feed ended: %v", what, err)
		case <-timeout:
			t.Fatalf("no %s after %v", what, patience)
		}
	}
}

// end waits for the end of the stream and returns why it did.
func (f *feedClient) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-f.err:
		return err
	case <-time.After(patience):
		t.Fatalf("the feed goes on after %v", patience)
		return nil
	}
}

// TestStoreInTheProcessIsNeverStale: the embedded store cannot be away, and needs
// no proofs, unless following it fails.
func TestStoreInTheProcessIsNeverStale(t *testing.T) {
	t.Parallel()
	s := openShared(t)
	f := newFreshness(s, registry.NewIndex(), time.Second, discard, func(bool) {})
	later := time.Now().Add(time.Hour)
	if err := f.trusted(later); err != nil || f.age(later) != 0 {
		t.Errorf("after an hour: %v, %v old", err, f.age(later))
	}
	f.follows(false)
	if err := f.trusted(later); err == nil {
		t.Error("it is trusted an hour after following it failed")
	}
	f.follows(true)
	if err := f.trusted(later); err != nil {
		t.Errorf("it is followed again: %v", err)
	}
}

// TestReadsWaitForTheLog gives up after a while.
func TestReadsWaitForTheLog(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	r := c.servers[0]
	r.way.lag()
	if _, err := r.inside.registry.CreateJoinToken(t.Context(), "x", time.Minute, nil); err != nil {
		t.Fatal(err)
	}
	f := r.inside.fresh
	if err := f.reach(t.Context(), f.reads, 20*time.Millisecond); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v, want that the store is not available", err)
	}
	r.way.catchUp()
	if err := f.wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLoadingServer: while a large store is read, what depends on none of it is
// answered, and the rest waits.
func TestLoadingServer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	first := c.servers[0]
	agent := first.attest(t)
	first.register(t, &types.Entry{SpiffeId: wireID("/x"), ParentId: wireID(agent.id.Path())})
	way := newTether(c.shared)
	way.loading = true
	r := startOn(t, testConfig(t), way)

	if b := r.bundle(t); len(b.X509Authorities) != 2 {
		t.Errorf("GetBundle has %d authorities", len(b.X509Authorities))
	}
	r.mint(t, "/by-hand")
	token, err := agentv1.NewAgentClient(first.admin(t)).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := join(t.Context(), agentv1.NewAgentClient(r.dial(t, nil)), token.Value, csr(t, newKey(t))); err != nil {
		t.Errorf("AttestAgent: %v", err)
	}
	if err := r.inside.ready(t.Context()); err == nil {
		t.Error("it says that it is ready")
	}
	listed := make(chan *entryv1.ListEntriesResponse, 1)
	conn := r.admin(t)
	go func() {
		l, err := entryv1.NewEntryClient(conn).ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
		if err != nil {
			t.Error(err)
		}
		listed <- l
	}()
	feed := watch(t, agent.at(t, r))
	select {
	case l := <-listed:
		t.Errorf("a list while it loads: %v", l)
	case m := <-feed.got:
		t.Errorf("the feed while it loads: %v", m)
	case <-time.After(50 * time.Millisecond):
	}
	way.set(&way.slow, false)
	if l := <-listed; len(l.GetEntries()) != 1 {
		t.Errorf("afterwards %d entries are listed", len(l.GetEntries()))
	}
	feed.synced(t)
}

// TestStoreReplaced: a server whose store is put back to an earlier day while it
// runs does not go on with what it knows.
func TestStoreReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	r := c.servers[0]
	if err := r.inside.fresh.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.ended = true
	r.way.mu.Lock()
	r.way.back = 1
	r.way.mu.Unlock()
	if err := r.inside.fresh.wait(t.Context()); !errors.Is(err, errReplaced) {
		t.Errorf("a read got %v", err)
	}
	<-r.done
	if err := r.stop(); !errors.Is(err, errReplaced) {
		t.Errorf("Run: %v", err)
	}
}
