package server

import (
	"context"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"

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
