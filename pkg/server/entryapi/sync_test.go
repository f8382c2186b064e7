package entryapi

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
)

// dialogue is one SyncAuthorizedEntries.
type dialogue struct {
	t      *testing.T
	stream entryv1.Entry_SyncAuthorizedEntriesClient
}

func (f *fixture) sync(t *testing.T) *dialogue {
	t.Helper()
	stream, err := f.SyncAuthorizedEntries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &dialogue{t, stream}
}

// ask sends a request and returns the answers up to the last.
func (d *dialogue) ask(req *entryv1.SyncAuthorizedEntriesRequest) (out []*entryv1.SyncAuthorizedEntriesResponse) {
	d.t.Helper()
	if err := d.stream.Send(req); err != nil {
		d.t.Fatal(err)
	}
	for {
		resp, err := d.stream.Recv()
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, resp)
		if !resp.More {
			return out
		}
	}
}

func (d *dialogue) end() {
	d.t.Helper()
	if err := d.stream.CloseSend(); err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.stream.Recv(); !errors.Is(err, io.EOF) {
		d.t.Errorf("after the client closed: %v, want EOF", err)
	}
}

func TestAuthorizedEntries(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	other := entry("/not-ours")
	other.ParentId = wireID("/spire/agent/join_token/b")
	mine := f.create(t, entry("/one"), entry("/two"), other)[:2]

	get := func(mask *types.EntryMask) []*types.Entry {
		t.Helper()
		resp, err := f.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{OutputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(resp.Entries, func(a, b *types.Entry) int { return slices.Compare([]byte(a.Id), []byte(b.Id)) })
		return resp.Entries
	}
	if got := get(nil); len(got) != 0 {
		t.Errorf("before the agent is attested: %v", got)
	}
	f.attest(t)
	if diff := cmp.Diff(mine, get(nil), protocmp.Transform()); diff != "" {
		t.Errorf("GetAuthorizedEntries (-want +got):\n%s", diff)
	}
	masked := []*types.Entry{{Id: mine[0].Id, SpiffeId: mine[0].SpiffeId}, {Id: mine[1].Id, SpiffeId: mine[1].SpiffeId}}
	if diff := cmp.Diff(masked, get(&types.EntryMask{SpiffeId: true}), protocmp.Transform()); diff != "" {
		t.Errorf("with a mask (-want +got):\n%s", diff)
	}

	d := f.sync(t)
	got := d.ask(&entryv1.SyncAuthorizedEntriesRequest{})
	if len(got) != 1 || len(got[0].EntryRevisions) != 0 || len(got[0].Entries) != 2 {
		t.Errorf("a small set came as %v", got)
	}
}

func TestSyncOfManyEntries(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.attest(t)
	const n = 1203
	f.fill(t, n)
	all, _ := f.pages(t, &entryv1.ListEntriesRequest{})

	d := f.sync(t)
	mask := &types.EntryMask{SpiffeId: true, RevisionNumber: true}
	var revisions []string
	pages := d.ask(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: mask})
	for i, p := range pages {
		if len(p.Entries) != 0 || (i < len(pages)-1 && len(p.EntryRevisions) != syncPage) {
			t.Errorf("page %d has %d entries and %d revisions", i, len(p.Entries), len(p.EntryRevisions))
		}
		for _, r := range p.EntryRevisions {
			if r.CreatedAt == 0 {
				t.Errorf("revision %v has no time of creation", r)
			}
			revisions = append(revisions, r.Id)
		}
	}
	slices.Sort(revisions)
	if !slices.Equal(revisions, all) {
		t.Fatalf("%d revisions, want those of the %d entries", len(revisions), n)
	}

	// What the agent asks for comes whole, once, in pages; what it may not
	// have does not.
	ids := append(slices.Clone(all), all[0], "nobody")
	slices.Reverse(ids)
	var got []string
	answers := d.ask(&entryv1.SyncAuthorizedEntriesRequest{Ids: ids})
	for _, a := range answers {
		if len(a.Entries) > syncPage {
			t.Errorf("a message has %d entries", len(a.Entries))
		}
		for _, e := range a.Entries {
			if e.SpiffeId == nil || e.Selectors != nil {
				t.Fatalf("the mask of the first request is not kept: %v", e)
			}
			got = append(got, e.Id)
		}
	}
	if slices.Sort(got); !slices.Equal(got, all) || len(answers) != 3 {
		t.Errorf("%d entries in %d messages", len(got), len(answers))
	}

	// An entry that was taken away meanwhile is not sent any more.
	if _, err := f.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: all[:1]}); err != nil {
		t.Fatal(err)
	}
	last := d.ask(&entryv1.SyncAuthorizedEntriesRequest{Ids: all[:2]})
	if len(last) != 1 || len(last[0].Entries) != 1 || last[0].Entries[0].Id != all[1] {
		t.Errorf("after a deletion: %v", last)
	}
	if none := d.ask(&entryv1.SyncAuthorizedEntriesRequest{Ids: []string{"nobody"}}); len(none) != 1 || len(none[0].Entries) != 0 {
		t.Errorf("for nothing that is there: %v", none)
	}
	d.end()
}

func TestSyncPageBoundary(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.attest(t)
	f.fill(t, syncPage)
	if got := f.sync(t).ask(&entryv1.SyncAuthorizedEntriesRequest{}); len(got) != 1 || len(got[0].Entries) != syncPage {
		t.Errorf("%d entries do not come whole", syncPage)
	}
	f.create(t, entry("/one-more"))
	got := f.sync(t).ask(&entryv1.SyncAuthorizedEntriesRequest{})
	if len(got) != 2 || len(got[0].EntryRevisions) != syncPage || len(got[1].EntryRevisions) != 1 {
		t.Errorf("%d entries come in %d messages", syncPage+1, len(got))
	}
}

func TestSyncRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.attest(t)
	for name, req := range map[string]*entryv1.SyncAuthorizedEntriesRequest{
		"IDs at first":    {Ids: []string{"x"}},
		"masked revision": {OutputMask: &types.EntryMask{SpiffeId: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := f.sync(t)
			if err := d.stream.Send(req); err != nil {
				t.Fatal(err)
			}
			if _, err := d.stream.Recv(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v, want InvalidArgument", err)
			}
		})
	}
}

func BenchmarkList100k(b *testing.B) {
	f := newFixture(b)
	f.fill(b, 100_000)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		n := 0
		for req := (&entryv1.ListEntriesRequest{PageSize: 1000}); ; {
			resp, err := f.ListEntries(b.Context(), req)
			if err != nil {
				b.Fatal(err)
			}
			n += len(resp.Entries)
			if req.PageToken = resp.NextPageToken; req.PageToken == "" {
				break
			}
		}
		if n != 100_000 {
			b.Fatal(n)
		}
	}
}

func BenchmarkCreate50(b *testing.B) {
	f := newFixture(b)
	b.ResetTimer()
	for i := range b.N {
		batch := make([]*types.Entry, 50)
		for j := range batch {
			batch[j] = entry(fmt.Sprintf("/b/%d/%d", i, j), "k8s:ns:x", fmt.Sprintf("k8s:sa:%d-%d", i, j))
		}
		f.create(b, batch...)
	}
	b.ReportMetric(float64(50*b.N)/b.Elapsed().Seconds(), "entries/s")
}
