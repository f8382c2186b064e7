package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
)

// The server is killed again and again, at any moment, while agents renew their
// SVIDs. None of them is ever locked out: each goes on with the SVID it has or
// the one it was given, and needs no new token (S31).
func TestS31_NoAgentIsLockedOutByAServerThatDies(t *testing.T) {
	t.Parallel()
	const agents, deaths = 3, 12
	w := newWorld(t, "renewal")
	s := w.startServer(serverOptions{settings: `agent_ttl = "6s"`})
	var all []*agent
	for i := range agents {
		a := w.startAgent(s, fmt.Sprintf("a%d", i), agentOptions{})
		s.create(w.entry("/web", a.id(), self()))
		streamX509(t, a.conn).has(w.id("/web"))
		all = append(all, a)
	}
	for range deaths {
		// At half-life each asks for the next one: in these ten seconds and
		// more every agent does so three times and more.
		sleepUntil(t, time.Now().Add(time.Duration(300+rand.IntN(900))*time.Millisecond))
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
		streamX509(t, a.conn).has(w.id("/web"), w.id(path))
	}
	count, err := s.agents().CountAgents(bounded(t), &agentv1.CountAgentsRequest{})
	if err != nil || count.GetCount() != agents {
		t.Errorf("%d agents are known (error %v), want %d", count.GetCount(), err, agents)
	}
}
