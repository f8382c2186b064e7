package integration

import (
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
)

// Two agents have a second name in common, a third has not. What is parented on
// the name reaches the workloads of the two, and of nobody else; an agent that
// is evicted takes its name along (S14).
func TestANodeAliasGivesTwoAgentsTheSameWorkloads(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alias")
	s := w.startServer(serverOptions{})
	pool := w.id("/pool")
	join := func(name string, args ...string) *agent {
		a := w.newAgent(s, name, agentOptions{})
		out := s.cli(append([]string{"token", "generate"}, args...)...)
		fields := strings.Fields(out.stdout)
		if out.code != 0 || len(fields) < 2 || fields[0] != "Token:" {
			t.Fatalf("token generate: exit code %d, %q, %q", out.code, out.stdout, out.stderr)
		}
		a.token = fields[1]
		a.attest()
		return a
	}
	a, b := join("a", "-spiffeID", pool.String()), join("b", "-spiffeID", pool.String())
	c := join("c")

	// An alias by node selectors, which no agent with a join token has.
	if out := s.cli("entry", "create", "-node", "-spiffeID", w.id("/zone").String(), "-selector", "join_token:zone:1"); out.code != 0 {
		t.Fatalf("entry create -node: exit code %d, %q", out.code, out.stderr)
	}
	s.create(w.entry("/zone/web", w.id("/zone"), self()))
	s.create(w.entry("/pool/web", pool, self()))
	// Once removed: the parent is what the alias' workloads are.
	s.create(w.entry("/only/c", c.id(), self()))

	for _, in := range []*agent{a, b} {
		u := sees(t, in, w.id("/pool/web"))
		u.find(w.id("/pool/web")).verify(t)
	}
	sees(t, c, w.id("/only/c"))

	// A change reaches both.
	streams := []*x509Stream{streamOf(t, a, w.id("/pool/web")), streamOf(t, b, w.id("/pool/web"))}
	s.create(w.entry("/pool/api", pool, self()))
	for _, stream := range streams {
		stream.has(w.id("/pool/web"), w.id("/pool/api"))
	}

	// The name goes with its agent, and only that one.
	names := func() int {
		n := 0
		for _, e := range s.allEntries() {
			if e.GetSpiffeId().GetPath() == pool.Path() {
				n++
			}
		}
		return n
	}
	if n := names(); n != 2 {
		t.Fatalf("%d entries name agents %s, want 2", n, pool)
	}
	if _, err := s.agents().DeleteAgent(bounded(t), &agentv1.DeleteAgentRequest{Id: apiID(a.id())}); err != nil {
		t.Fatal(err)
	}
	streams[0].ends()
	if n := names(); n != 1 {
		t.Errorf("%d entries name agents %s after one was evicted, want 1", n, pool)
	}
	s.create(w.entry("/pool/third", pool, self()))
	streams[1].has(w.id("/pool/web"), w.id("/pool/api"), w.id("/pool/third"))
}
