package entitle_test

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
)

// A node alias gives an entry to the agents whose selectors it names.
func Example() {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	rack := attest.NewSelectors(attest.Selector{Type: "k8s_psat", Value: "cluster:a"})
	node := spiffeid.RequireFromPath(td, "/spire/agent/k8s_psat/a/1")
	now := time.Now()
	g := entitle.New(td)
	g.Apply(&registry.Commit{
		Revision: 1, Reset: true,
		Entries: []registry.EntryChange{{ID: "alias", Now: (&registry.Entry{
			ID: "alias", ParentID: registry.ServerID(td), SPIFFEID: spiffeid.RequireFromPath(td, "/cluster/a"), Selectors: rack,
		}).Pack()}},
		Agents: []registry.AgentChange{{ID: node, Now: &registry.Agent{ID: node, Selectors: rack, NotAfter: now.Add(time.Hour)}}},
	})
	touched := g.Apply(&registry.Commit{
		Revision: 2,
		Entries: []registry.EntryChange{{ID: "web", Now: (&registry.Entry{
			ID: "web", ParentID: spiffeid.RequireFromPath(td, "/cluster/a"), SPIFFEID: spiffeid.RequireFromPath(td, "/web"), Selectors: rack,
		}).Pack()}},
	})
	for agent, entries := range touched.All() {
		fmt.Println("look again:", agent, entries)
	}
	e, ok := g.Lookup(node, "web", now)
	fmt.Println(ok, e.Entry().SPIFFEID)
	// Output:
	// look again: spiffe://example.org/spire/agent/k8s_psat/a/1 [web]
	// true spiffe://example.org/web
}
