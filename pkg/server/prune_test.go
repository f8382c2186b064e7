package server

import (
	"context"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestPruneAgents waits for agents that are gone to be removed, and only those.
func TestPruneAgents(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.PruneAttestedNodesExpiredFor = time.Second
	r := start(t, cfg)
	attestOne := func(name string, again bool, notAfter time.Time) {
		t.Helper()
		_, err := r.inside.registry.AttestAgent(t.Context(), &registry.Agent{
			ID: spiffeid.RequireFromString("spiffe://example.org/spire/agent/test/" + name), AttestationType: "test",
			Selectors: attest.NewSelectors(attest.Selector{Type: "test", Value: name}), CanReattest: again, Serial: "1", NotAfter: notAfter,
		}, "", nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	attestOne("gone", true, now.Add(-time.Minute))
	attestOne("going", true, now.Add(2*time.Second))
	attestOne("gone-for-good", false, now.Add(-time.Minute))
	attestOne("here", true, now.Add(time.Hour))
	client := agentv1.NewAgentClient(r.admin(t))
	names := func(ctx context.Context) string {
		resp, err := client.ListAgents(ctx, &agentv1.ListAgentsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var out string
		for _, a := range resp.Agents {
			out += a.Id.Path[len("/spire/agent/test/"):] + " "
		}
		return out
	}
	soon(t, "the agents that are gone are removed", func(ctx context.Context) bool { return names(ctx) == "gone-for-good here " })
	if early := time.Since(now); early < 2*time.Second {
		t.Errorf("an agent was removed %v after it was made, before its time", early)
	}
}

// TestS14_PrunedAgentLeavesNothing: an agent that came by a join token goes, when
// prune_tofu_nodes says so, with the alias of its token; one that is banned stays
// banned.
func TestS14_PrunedAgentLeavesNothing(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.PruneAttestedNodesExpiredFor, cfg.Server.PruneTOFUNodes, cfg.Server.AgentTTL = time.Second, true, time.Second
	r := start(t, cfg)
	client := agentv1.NewAgentClient(r.admin(t))
	if _, err := client.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, Token: "tok", AgentId: wireID("/node")}); err != nil {
		t.Fatal(err)
	}
	entries := entryv1.NewEntryClient(r.admin(t))
	count := func(ctx context.Context) int32 {
		resp, err := entries.CountEntries(ctx, &entryv1.CountEntriesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Count
	}
	if n := count(t.Context()); n != 1 {
		t.Fatalf("%d entries, want the token's alias", n)
	}
	again := r.attestWith(t, "tok")
	banned := r.banOne(t)
	soon(t, "the agent is removed", func(ctx context.Context) bool {
		_, err := client.GetAgent(ctx, &agentv1.GetAgentRequest{Id: wireID(again.id.Path())})
		return status.Code(err) == codes.NotFound
	})
	if n := count(t.Context()); n != 0 {
		t.Errorf("%d entries are left of it", n)
	}
	if a, err := client.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: wireID(banned.id.Path())}); err != nil || !a.Banned {
		t.Errorf("the banned agent is %v, %v", a, err)
	}
}

// banOne bans an agent that is soon pruned: on a busy machine even before that,
// and then another one is tried.
func (r *running) banOne(t *testing.T) *testAgent {
	t.Helper()
	for {
		a := r.attest(t)
		_, err := agentv1.NewAgentClient(r.admin(t)).BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: wireID(a.id.Path())})
		if err == nil {
			return a
		}
		if status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
	}
}
