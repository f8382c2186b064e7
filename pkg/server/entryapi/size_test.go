package entryapi

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
)

// A SPIRE agent that is entitled to more entries than go into one message that a
// gRPC client takes by default gets all of them: the revisions, then the entries
// it asks for, in messages far below that. With SOAK=1 they are 200,000.
func TestSyncBeyondOneMessage(t *testing.T) {
	t.Parallel()
	n := 30_000
	if os.Getenv("SOAK") != "" {
		n = 200_000
	}
	graph := entitle.New(td)
	c := &registry.Commit{Reset: true, Revision: 1}
	for i := range n {
		id := fmt.Sprintf("0197a5e0-0000-7000-8000-%012d", i)
		e := &registry.Entry{
			ID: id, ParentID: agentID, SPIFFEID: spiffeid.RequireFromPathf(td, "/ns/%d/sa/%d", i%100, i), CreatedAt: time.Unix(1700000000, 0),
			Selectors: attest.NewSelectors(attest.Selector{Type: "k8s", Value: "ns:default"}, attest.Selector{Type: "k8s", Value: fmt.Sprint("sa:", i)}),
		}
		c.Entries = append(c.Entries, registry.EntryChange{ID: id, Now: e.Pack()})
	}
	c.Agents = []registry.AgentChange{{ID: agentID, Now: &registry.Agent{ID: agentID, NotAfter: time.Now().Add(time.Hour)}}}
	graph.Apply(c)
	service := New(Config{
		TrustDomain: td, Index: registry.NewIndex(), Entitlements: graph, Logger: slog.New(slog.DiscardHandler),
		Fresh: func(context.Context) error { return nil },
	})
	stream, err := entryv1.NewEntryClient(serve(t, service)).SyncAuthorizedEntries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := &dialogue{t, stream}
	largest, total := 0, 0
	var ids []string
	for _, page := range d.ask(&entryv1.SyncAuthorizedEntriesRequest{}) {
		largest = max(largest, proto.Size(page))
		for _, r := range page.EntryRevisions {
			ids = append(ids, r.Id)
		}
	}
	var got int
	for some := range slices.Chunk(ids, 5000) {
		for _, page := range d.ask(&entryv1.SyncAuthorizedEntriesRequest{Ids: some}) {
			largest, total = max(largest, proto.Size(page)), total+proto.Size(page)
			got += len(page.Entries)
		}
	}
	d.end()
	t.Logf("%d entries, %d bytes, in messages of at most %d bytes", got, total, largest)
	if got != n || largest > 1<<20 || total < 4<<20 {
		t.Errorf("got %d entries of %d in messages of up to %d bytes, %d in all", got, n, largest, total)
	}
}
