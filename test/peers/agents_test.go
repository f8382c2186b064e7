package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestTheirAgentOnOurServer: a real SPIRE agent lives its life on our server.
func TestTheirAgentOnOurServer(t *testing.T) {
	t.Parallel()
	foreign := spire(t)
	liveOn(t, ours(t), foreign)
}

// TestOurAgentOnTheirServer: our agent finds that a real SPIRE server has no push
// stream, and polls it.
func TestOurAgentOnTheirServer(t *testing.T) {
	t.Parallel()
	liveOn(t, spire(t), ours(t))
}

// syncTime is how long news may take where SPIRE is on one side or the other:
// its server reads its database every 5 s, and agents ask every 5 s, ± 10 %.
const syncTime = 11500 * time.Millisecond

func liveOn(t *testing.T, server, agent programs) {
	s := startSide(t, server, `agent_ttl = "40s"`, `default_x509_svid_ttl = "20s"`)
	n := s.startNode(agent)
	w := n.watch(t)

	// Nothing is registered: the workload is told so.
	_, err := w.client.FetchX509SVID(bounded(t))
	if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "no identity issued" {
		t.Errorf("without an entry: %v, want PermissionDenied: no identity issued", err)
	}

	// A new entry, then its change, then another one, arrive on the open stream.
	first := s.create(t, n.mine("/first"))
	w.await(t, "a new entry", func(svids []*x509svid.SVID) bool { return len(svids) == 1 && svids[0].ID.Path() == "/first" })
	first.Hint = "changed"
	resp, err := entryv1.NewEntryClient(s.local).BatchUpdateEntry(bounded(t), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{first}})
	if err != nil || resp.GetResults()[0].GetStatus().GetCode() != 0 {
		t.Fatalf("changing the entry: %v, %v", resp, err)
	}
	w.await(t, "a changed entry", func(svids []*x509svid.SVID) bool { return len(svids) == 1 && svids[0].Hint == "changed" })
	second := s.create(t, n.mine("/second"))
	w.await(t, "another entry", func(svids []*x509svid.SVID) bool { return len(svids) == 2 })
	n.checkJWT(t, w.client)

	// The bundle gets an authority.
	authorities := w.authorities()
	local := localauthorityv1.NewLocalAuthorityClient(s.local)
	prepared, err := local.PrepareX509Authority(bounded(t), &localauthorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	w.await(t, "another authority", func([]*x509svid.SVID) bool { return w.authorities() == authorities+1 })

	// The old one is not trusted any more: what it signed is replaced, the
	// agent's own SVID too, and then it goes.
	state, err := local.GetX509AuthorityState(bounded(t), &localauthorityv1.GetX509AuthorityStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	before := n.record(t).GetX509SvidSerialNumber()
	_, err = local.ActivateX509Authority(bounded(t), &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: prepared.GetPreparedAuthority().GetAuthorityId()})
	if err == nil {
		_, err = local.TaintX509Authority(bounded(t), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: state.GetActive().GetAuthorityId()})
	}
	if err != nil {
		t.Fatal(err)
	}
	w.await(t, "an SVID of the new authority", func(svids []*x509svid.SVID) bool {
		return fmt.Sprintf("%x", svids[0].Certificates[0].AuthorityKeyId) == prepared.GetPreparedAuthority().GetAuthorityId()
	})
	n.renewed(t, before)
	if _, err := local.RevokeX509Authority(bounded(t), &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: state.GetActive().GetAuthorityId()}); err != nil {
		t.Fatal(err)
	}
	w.await(t, "an authority less", func([]*x509svid.SVID) bool { return w.authorities() == authorities })
	healthy(t, n.proc, n.conn)

	// An entry goes.
	if _, err := entryv1.NewEntryClient(s.local).BatchDeleteEntry(bounded(t), &entryv1.BatchDeleteEntryRequest{Ids: []string{second.GetId()}}); err != nil {
		t.Fatal(err)
	}
	w.await(t, "an entry less", func(svids []*x509svid.SVID) bool { return len(svids) == 1 })

	// The server restarts: the agent finds it again.
	if !s.proc.end(os.Interrupt) {
		t.Fatal("the server did not end")
	}
	s.start()
	again := s.create(t, n.mine("/again"))
	w.await(t, "an entry after a restart", func(svids []*x509svid.SVID) bool { return len(svids) == 2 })
	if _, err := entryv1.NewEntryClient(s.local).BatchDeleteEntry(bounded(t), &entryv1.BatchDeleteEntryRequest{Ids: []string{again.GetId()}}); err != nil {
		t.Fatal(err)
	}

	// The workload's SVID, and the agent's own, are renewed in time.
	signed := w.latest().SVIDs[0].Certificates[0].Raw
	eventually(t, "the workload's SVID is renewed", func() error {
		if now := w.latest(); bytes.Equal(now.SVIDs[0].Certificates[0].Raw, signed) {
			return errNotYet
		}
		return nil
	})
	n.renewed(t, n.record(t).GetX509SvidSerialNumber())
	healthy(t, n.proc, n.conn)

	// A ban ends the agent, and so does the eviction of one that cannot attest
	// again.
	if _, err := agentv1.NewAgentClient(s.local).BanAgent(bounded(t), &agentv1.BanAgentRequest{Id: apiID(n.id)}); err != nil {
		t.Fatal(err)
	}
	n.ends(t, "the ban")
	other := s.startNode(agent)
	if _, err := agentv1.NewAgentClient(s.local).DeleteAgent(bounded(t), &agentv1.DeleteAgentRequest{Id: apiID(other.id)}); err != nil {
		t.Fatal(err)
	}
	other.ends(t, "the eviction")
}

func (n *node) ends(t *testing.T, what string) {
	t.Helper()
	eventually(t, n.agent.name+" agent ends after "+what, func() error {
		if n.proc.running() {
			return errNotYet
		}
		return nil
	})
	if code := n.proc.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("the agent ended after %s with exit code %d, want 1", what, code)
	}
}

// renewed waits until the agent's own SVID has another serial number.
func (n *node) renewed(t *testing.T, serial string) {
	t.Helper()
	start := time.Now()
	eventually(t, "the agent's SVID is renewed", func() error {
		if n.record(t).GetX509SvidSerialNumber() == serial {
			return errNotYet
		}
		return nil
	})
	t.Logf("the agent's own SVID is another after %v", time.Since(start).Round(time.Millisecond))
}

// record is what the server says of the agent.
func (n *node) record(t *testing.T) *types.Agent {
	t.Helper()
	a, err := agentv1.NewAgentClient(n.local).GetAgent(bounded(t), &agentv1.GetAgentRequest{Id: apiID(n.id)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// checkJWT fetches a token for each identity and verifies it with the bundle.
func (n *node) checkJWT(t *testing.T, client *workloadapi.Client) {
	t.Helper()
	bundles, err := client.FetchJWTBundles(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := client.FetchJWTSVIDs(bounded(t), jwtsvid.Params{Audience: "them"})
	if err != nil {
		t.Fatal(err)
	}
	if len(tokens) != 2 {
		t.Errorf("%d tokens, want 2", len(tokens))
	}
	for _, token := range tokens {
		if _, err := jwtsvid.ParseAndValidate(token.Marshal(), jwtbundle.NewSet(bundles.Bundles()...), []string{"them"}); err != nil {
			t.Errorf("the token of %s: %v", token.ID, err)
		}
		if _, err := client.ValidateJWTSVID(bounded(t), token.Marshal(), "them"); err != nil {
			t.Errorf("the agent on the token of %s: %v", token.ID, err)
		}
	}
}

// watcher is a workload with an open stream.
type watcher struct {
	client  *workloadapi.Client
	updates chan *workloadapi.X509Context
	now     *workloadapi.X509Context
}

// OnX509ContextUpdate is workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.updates <- c }

// OnX509ContextWatchError is workloadapi.X509ContextWatcher; the client goes on.
func (w *watcher) OnX509ContextWatchError(error) {}

func (n *node) watch(t *testing.T) *watcher {
	t.Helper()
	client, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+n.socket()))
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{client: client, updates: make(chan *workloadapi.X509Context, 1000)}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.WatchX509Context(ctx, w) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; status.Code(err) != codes.Canceled && !errors.Is(err, context.Canceled) {
			t.Errorf("the watch ended: %v", err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// latest takes up what has come.
func (w *watcher) latest() *workloadapi.X509Context {
	for {
		select {
		case w.now = <-w.updates:
		default:
			return w.now
		}
	}
}

func (w *watcher) authorities() int {
	b, err := w.now.Bundles.GetX509BundleForTrustDomain(testTD)
	if err != nil {
		return 0
	}
	return len(b.X509Authorities())
}

// await waits for an update that is as wanted, as long as news may take.
func (w *watcher) await(t *testing.T, what string, wanted func([]*x509svid.SVID) bool) []*x509svid.SVID {
	t.Helper()
	start := time.Now()
	deadline := time.After(patience)
	for w.now == nil || !wanted(w.now.SVIDs) {
		select {
		case w.now = <-w.updates:
		case <-deadline:
			t.Fatalf("%s did not arrive in %v: %s", what, patience, w)
		}
	}
	took := time.Since(start)
	t.Logf("%s arrived after %v", what, took.Round(time.Millisecond))
	if took > syncTime {
		t.Errorf("%s arrived after %v, want at most %v", what, took, syncTime)
	}
	return w.now.SVIDs
}

// String is for messages.
func (w *watcher) String() string {
	if w.now == nil {
		return "nothing has arrived"
	}
	return fmt.Sprintf("%d SVIDs, %d authorities", len(w.now.SVIDs), w.authorities())
}
