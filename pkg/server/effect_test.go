package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// effectLimit is how soon a change that was asked for at one server has arrived
// at an agent of another, in the best of the rounds.
const effectLimit = 100 * time.Millisecond

// TestChangesArriveAtAgentsOfOtherServers measures, from the request at one
// server to the message at an agent of another.
func TestChangesArriveAtAgentsOfOtherServers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	w := &effects{t: t, a: c.servers[0], b: c.servers[1], best: make(map[string]time.Duration)}
	const rounds = 3
	for i := range rounds {
		w.round(i)
	}
	for what, took := range w.best {
		t.Logf("%-28s %v", what, took)
		if took > effectLimit*raceSlack {
			t.Errorf("%s took %v at best", what, took)
		}
	}
}

// effects changes things at a and waits for them at agents of b.
type effects struct {
	t    *testing.T
	a, b *running
	best map[string]time.Duration
}

func (w *effects) measure(what string, do, arrived func()) {
	w.t.Helper()
	begin := time.Now()
	do()
	arrived()
	if took := time.Since(begin); w.best[what] == 0 || took < w.best[what] {
		w.best[what] = took
	}
}

func (w *effects) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *effects) round(i int) {
	t, ctx := w.t, w.t.Context()
	agents := agentv1.NewAgentClient(w.a.admin(t))
	entries := entryv1.NewEntryClient(w.a.admin(t))
	bundles := bundlev1.NewBundleClient(w.a.admin(t))
	agent, evicted := w.b.attest(t), w.b.attest(t)
	feed, other := watch(t, agent.conn), watch(t, evicted.conn)
	feed.synced(t)
	other.synced(t)
	domain := fmt.Sprintf("other-%d.test", i)
	bundle := &types.Bundle{TrustDomain: domain, X509Authorities: []*types.X509Certificate{{Asn1: foreignRoot(t)}}}
	_, err := bundles.BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{bundle}})
	w.must(err)

	var id string
	w.measure("an entry is made", func() {
		id = w.a.register(t, &types.Entry{SpiffeId: wireID("/x"), ParentId: wireID(agent.id.Path()), FederatesWith: []string{domain}})
	}, func() { feed.delta(t, "the entry", func(d *feedv1.Delta) bool { return len(d.Upserts) == 1 }) })
	w.measure("a federated bundle is set", func() {
		bundle.X509Authorities[0].Asn1 = foreignRoot(t)
		_, err := bundles.BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{bundle}})
		w.must(err)
	}, func() {
		feed.delta(t, "the bundle", func(d *feedv1.Delta) bool {
			return len(d.Bundles) == 1 && d.Bundles[0].Bundle.TrustDomain == domain
		})
	})
	w.measure("an entry is deleted", func() {
		_, err := entries.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{id}})
		w.must(err)
	}, func() { feed.delta(t, "the removal", func(d *feedv1.Delta) bool { return len(d.Removes) == 1 }) })
	w.authority(feed)
	w.measure("an agent is banned", func() { w.a.ban(t, agent) }, func() { w.refused(feed.end(t)) })
	w.measure("an agent is evicted", func() {
		_, err := agents.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: wireID(evicted.id.Path())})
		w.must(err)
	}, func() { w.refused(other.end(t)) })
}

func (w *effects) refused(err error) {
	w.t.Helper()
	if status.Code(err) != codes.PermissionDenied {
		w.t.Errorf("the feed ended with %v", err)
	}
}

// authority rotates the X.509 authority of server a by hand, and revokes the one
// before.
func (w *effects) authority(feed *feedClient) {
	t, ctx := w.t, w.t.Context()
	line := localauthorityv1.NewLocalAuthorityClient(w.a.admin(t))
	now, err := line.GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
	w.must(err)
	old := now.Active.AuthorityId
	has := len(w.a.bundle(t).X509Authorities)
	own := func(what string, is func(b *types.Bundle) bool) func() {
		return func() {
			feed.delta(t, what, func(d *feedv1.Delta) bool {
				return len(d.Bundles) > 0 && d.Bundles[0].Bundle.TrustDomain == testDomain && is(d.Bundles[0].Bundle)
			})
		}
	}
	var next string
	w.measure("an authority is prepared", func() {
		r, err := line.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
		w.must(err)
		next = r.PreparedAuthority.AuthorityId
	}, own("the new root", func(b *types.Bundle) bool { return len(b.X509Authorities) == has+1 }))
	_, err = line.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: next})
	w.must(err)
	w.measure("an authority is tainted", func() {
		_, err := line.TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
		w.must(err)
	}, own("the taint", func(b *types.Bundle) bool {
		for _, a := range b.X509Authorities {
			if a.Tainted {
				return true
			}
		}
		return false
	}))
	w.measure("an authority is revoked", func() {
		_, err := line.RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: old})
		w.must(err)
	}, own("its removal", func(b *types.Bundle) bool { return len(b.X509Authorities) == has }))
}

// delta waits for one.
func (f *feedClient) delta(t testing.TB, what string, is func(*feedv1.Delta) bool) {
	t.Helper()
	f.until(t, what, func(m *feedv1.WatchResponse) bool { return m.GetDelta() != nil && is(m.GetDelta()) })
}

// TestPruningMovesWithTheLock: what has expired is removed once, by whoever holds
// the lock; when a holder is gone, another server does it.
func TestPruningMovesWithTheLock(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, func(cfg *Config) { cfg.Server.PruneAttestedNodesExpiredFor = time.Second })
	r := c.servers[0]
	lock, err := c.shared.Lock(t.Context(), "prune")
	if err != nil {
		t.Fatal(err)
	}
	r.register(t, &types.Entry{SpiffeId: wireID("/x"), ParentId: wireID("/p"), ExpiresAt: time.Now().Add(time.Second).Unix()})
	stored := func(ctx context.Context) bool {
		at, err := r.inside.registry.NextExpiry(ctx)
		return err == nil && !at.IsZero()
	}
	select {
	case <-time.After(2500 * time.Millisecond):
	case <-t.Context().Done():
	}
	if !stored(t.Context()) {
		t.Fatal("it was removed though another process holds the lock")
	}
	lock.Unlock() // As its lease would end.
	soon(t, "another server removes it", func(ctx context.Context) bool { return !stored(ctx) })
}
