package integration

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
)

// Eight clients create 1,000 entries, and the server is killed three times while
// they are at it. Every entry that was acknowledged is there, as it was
// acknowledged; none is there by half; and the clients can finish their work.
func TestEveryAcknowledgedEntrySurvivesKill9(t *testing.T) {
	t.Parallel()
	const clients, total = 8, 1000
	w := newWorld(t, "crash")
	s := w.startServer(serverOptions{})

	want := make([]*types.Entry, total)
	for i := range want {
		e := w.entry(fmt.Sprintf("/w/%d", i), w.id("/spire/agent/join_token/nobody"), fmt.Sprintf("unix:uid:%d", i), "unix:user:u")
		e.Hint, e.X509SvidTtl, e.DnsNames = fmt.Sprintf("hint-%d", i), int32(60+i), []string{fmt.Sprintf("w%d.crash.test", i)}
		want[i] = e
	}
	acked := make(map[int]*types.Entry) // by index in want, as acknowledged
	var mu sync.Mutex
	for round, killAt := range []int{total / 4, total / 2, total * 3 / 4, total + 1} {
		var next atomic.Int64
		var working sync.WaitGroup
		enough := make(chan struct{})
		reach := sync.OnceFunc(func() { close(enough) })
		for range clients {
			working.Go(func() {
				client := entryv1.NewEntryClient(dialSocket(t, s.socket()))
				for i := int(next.Add(1)) - 1; i < total; i = int(next.Add(1)) - 1 {
					mu.Lock()
					done := acked[i] != nil
					mu.Unlock()
					if done {
						continue
					}
					resp, err := client.BatchCreateEntry(bounded(t), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{want[i]}})
					if err != nil {
						return // the server is gone
					}
					r := resp.GetResults()[0]
					// AlreadyExists: it was written, and the answer was lost.
					if c := codes.Code(r.GetStatus().GetCode()); c != codes.OK && c != codes.AlreadyExists {
						t.Errorf("round %d: creating %d: %v", round, i, r.GetStatus())
						return
					}
					mu.Lock()
					acked[i] = r.GetEntry()
					n := len(acked)
					mu.Unlock()
					if n >= killAt {
						reach()
					}
				}
			})
		}
		if killAt <= total {
			<-enough
			s.kill()
		}
		working.Wait()
		if killAt <= total {
			s.start()
		}
		checkAcknowledged(t, s, want, acked)
		t.Logf("round %d: %d of %d acknowledged", round, len(acked), total)
	}
	if len(acked) != total {
		t.Errorf("%d entries were acknowledged at the end, want %d", len(acked), total)
	}
}

// checkAcknowledged holds what is there against what was promised.
func checkAcknowledged(t *testing.T, s *server, want []*types.Entry, acked map[int]*types.Entry) {
	t.Helper()
	have := s.allEntries()
	left := maps.Clone(have)
	for i, e := range acked {
		got := have[e.GetId()]
		if diff := cmp.Diff(e, got, protocmp.Transform()); diff != "" {
			t.Fatalf("entry %d was acknowledged and is there otherwise (-acknowledged +there):\n%s", i, diff)
		}
		delete(left, e.GetId())
	}
	// What is left was in flight. It is whole, and it is one that was asked for.
	asked := make(map[string]*types.Entry)
	for _, e := range want {
		asked[e.GetSpiffeId().GetPath()] = e
	}
	for _, got := range left {
		e := asked[got.GetSpiffeId().GetPath()]
		diff := cmp.Diff(e, got, protocmp.Transform(), protocmp.IgnoreFields(&types.Entry{}, "id", "revision_number", "created_at"),
			protocmp.SortRepeatedFields(&types.Entry{}, "selectors"))
		if diff != "" {
			t.Fatalf("an entry that was not acknowledged is there by half (-asked +there):\n%s", diff)
		}
		delete(asked, got.GetSpiffeId().GetPath())
	}
}
