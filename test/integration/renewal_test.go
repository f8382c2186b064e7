package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
)

// The server is killed again and again while it renews an agent's SVID: once it
// has said that it will, at any moment from there to the answer and after it. No
// agent is ever locked out: each goes on with the SVID it has or the one it was
// given, and needs no new token (S31).
func TestS31_NoAgentIsLockedOutByAServerThatDies(t *testing.T) {
	t.Parallel()
	const agents, deaths = 3, 6
	w := newWorld(t, "renewal")
	// Half of this is how long an agent may try in vain.
	s := w.startServer(serverOptions{settings: `agent_ttl = "24s"`})
	var all []*agent
	for i := range agents {
		a := w.startAgent(s, fmt.Sprintf("a%d", i), agentOptions{})
		s.create(w.entry("/web", a.id(), self()))
		sees(t, a, w.id("/web"))
		all = append(all, a)
	}
	for range deaths {
		s.proc.await(t, "audit intent.* action=agent.renew ")
		sleepUntil(t, time.Now().Add(time.Duration(rand.IntN(8))*time.Millisecond))
		s.kill()
		s.start()
	}
	for i, a := range all {
		// After its next renewal too.
		seen := a.renewals()
		eventually(t, a.name+" renews", func() error {
			if !a.proc.running() {
				t.Fatalf("%s has ended: %q", a.name, errorLines(a.proc.log.String()))
			}
			if n := a.renewals(); n == seen {
				return fmt.Errorf("%d renewals", n)
			}
			return nil
		})
		path := fmt.Sprintf("/after/%d", i)
		s.create(w.entry(path, a.id(), self()))
		sees(t, a, w.id("/web"), w.id(path))
	}
	count, err := s.agents().CountAgents(bounded(t), &agentv1.CountAgentsRequest{})
	if err != nil || count.GetCount() != agents {
		t.Errorf("%d agents are known (error %v), want %d", count.GetCount(), err, agents)
	}
}
