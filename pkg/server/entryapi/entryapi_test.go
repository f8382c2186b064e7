package entryapi

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/credence-id/credence/pkg/registry"
)

func TestCreateStatusesPerItem(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := f.create(t, entry("/one"))[0]
	if first.Id == "" || first.CreatedAt == 0 {
		t.Errorf("created %v, without an ID or a time of creation", first)
	}
	foreign := entry("/foreign")
	foreign.SpiffeId.TrustDomain = "other.test"
	noSelectors := entry("/none")
	noSelectors.Selectors = nil
	named := entry("/named")
	named.Id = "my-own-id"
	sameID := entry("/same-id")
	sameID.Id = "my-own-id"
	unfederated := entry("/unfederated")
	unfederated.FederatesWith = []string{"nobody.test"}
	pathless := entry("/x")
	pathless.SpiffeId.Path = "no-slash"

	for _, tc := range []struct {
		name  string
		entry *types.Entry
		code  codes.Code
		text  string // in the message
		id    string // of the entry in the answer
	}{
		{"similar", entry("/one"), codes.AlreadyExists, "similar entry already exists", first.Id},
		{"new", entry("/two"), codes.OK, "OK", "*"},
		{"own ID", named, codes.OK, "OK", "my-own-id"},
		{"taken ID", sameID, codes.AlreadyExists, "another entry has this ID", "my-own-id"},
		{"foreign trust domain", foreign, codes.InvalidArgument, "failed to convert entry: spiffe_id", ""},
		{"no selectors", noSelectors, codes.InvalidArgument, "failed to convert entry: selectors", ""},
		{"reserved path", entry("/spire/agent/x/y"), codes.InvalidArgument, "reserved", ""},
		{"path without a slash", pathless, codes.InvalidArgument, "leading slash", ""},
		{"unknown bundle", unfederated, codes.InvalidArgument, "nobody.test", ""},
		{"nothing", nil, codes.InvalidArgument, "failed to convert entry", ""},
	} {
		// One after the other: each depends on those before.
		resp, err := f.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{tc.entry}})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		got := resp.Results[0]
		if codeOf(got.Status) != tc.code || !strings.Contains(got.Status.Message, tc.text) {
			t.Errorf("%s: status %v %q, want %v %q", tc.name, codeOf(got.Status), got.Status.Message, tc.code, tc.text)
		}
		if id := got.Entry.GetId(); id != tc.id && (tc.id != "*" || id == "") {
			t.Errorf("%s: entry %q in the answer, want %q", tc.name, id, tc.id)
		}
	}
}

func TestCreateKeepsOrderAndMask(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var batch []*types.Entry
	for i := range 300 {
		e := entry(fmt.Sprintf("/w/%d", i))
		if i%3 == 1 {
			e.Selectors = nil // refused
		}
		batch = append(batch, e)
	}
	resp, err := f.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{
		Entries: batch, OutputMask: &types.EntryMask{SpiffeId: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range resp.Results {
		if i%3 == 1 {
			if codeOf(r.Status) != codes.InvalidArgument || r.Entry != nil {
				t.Errorf("item %d: %v", i, r)
			}
			continue
		}
		want := &types.Entry{Id: r.Entry.GetId(), SpiffeId: batch[i].SpiffeId}
		if diff := cmp.Diff(want, r.Entry, protocmp.Transform()); diff != "" {
			t.Errorf("item %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestUpdateSetsWhatTheMaskNames(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	before := f.create(t, entry("/one"), entry("/two"))

	update := func(t *testing.T, e *types.Entry, mask *types.EntryMask) *entryv1.BatchUpdateEntryResponse_Result {
		t.Helper()
		resp, err := f.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}, InputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Results[0]
	}
	got := update(t, &types.Entry{Id: before[0].Id, Hint: "external", Admin: true}, &types.EntryMask{Hint: true})
	want := proto.CloneOf(before[0])
	want.Hint, want.RevisionNumber = "external", 1
	if diff := cmp.Diff(want, got.Entry, protocmp.Transform()); diff != "" {
		t.Errorf("one field (-want +got):\n%s", diff)
	}

	whole := entry("/uno", "unix:uid:7")
	whole.Id, whole.X509SvidTtl, whole.Downstream = before[0].Id, 60, true
	whole.CreatedAt, whole.RevisionNumber = 1, 77 // not the client's to set
	got = update(t, whole, nil)
	want = proto.CloneOf(whole)
	want.CreatedAt, want.RevisionNumber = before[0].CreatedAt, 2
	if diff := cmp.Diff(want, got.Entry, protocmp.Transform()); diff != "" {
		t.Errorf("all fields (-want +got):\n%s", diff)
	}

	for name, tc := range map[string]struct {
		entry *types.Entry
		mask  *types.EntryMask
		code  codes.Code
	}{
		"unknown ID":   {&types.Entry{Id: "nobody"}, &types.EntryMask{Hint: true}, codes.NotFound},
		"no ID":        {&types.Entry{}, &types.EntryMask{Hint: true}, codes.InvalidArgument},
		"nothing":      {nil, nil, codes.InvalidArgument},
		"no selectors": {&types.Entry{Id: before[0].Id}, &types.EntryMask{Selectors: true}, codes.InvalidArgument},
		"similar": {
			&types.Entry{Id: before[0].Id, SpiffeId: wireID("/two"), Selectors: before[1].Selectors},
			&types.EntryMask{SpiffeId: true, Selectors: true}, codes.AlreadyExists,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := update(t, tc.entry, tc.mask)
			if codeOf(got.Status) != tc.code || got.Entry != nil {
				t.Errorf("got %v, want %v and no entry", got, tc.code)
			}
		})
	}
	after, err := f.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: before[0].Id})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, after, protocmp.Transform()); diff != "" {
		t.Errorf("after refused updates (-want +got):\n%s", diff)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	made := f.create(t, entry("/one"), entry("/two"))
	resp, err := f.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{made[0].Id, "nobody", "", made[0].Id}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range resp.Results {
		got = append(got, fmt.Sprintf("%s %v %s", r.Id, codeOf(r.Status), r.Status.Message))
	}
	want := []string{
		made[0].Id + " OK OK", "nobody NotFound entry not found", " InvalidArgument missing entry ID", made[0].Id + " NotFound entry not found",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := f.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: made[0].Id}); status.Code(err) != codes.NotFound {
		t.Errorf("deleted entry: %v, want NotFound", err)
	}
	if _, err := f.GetEntry(t.Context(), &entryv1.GetEntryRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no ID: %v, want InvalidArgument", err)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, name := range []string{"f1.test", "f2.test", "f3.test"} {
		_, err := f.Registry.UpdateBundle(t.Context(), spiffeid.RequireTrustDomainFromString(name), func(*registry.Bundle) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	with := func(e *types.Entry, change func(*types.Entry)) *types.Entry {
		change(e)
		return e
	}
	f.create(t,
		with(entry("/e1", "a:1", "b:2", "c:3"), func(e *types.Entry) { e.FederatesWith = []string{"f1.test", "f2.test", "f3.test"} }),
		with(entry("/e2", "a:1", "b:2"), func(e *types.Entry) { e.FederatesWith = []string{"f1.test", "f2.test"}; e.Hint = "internal" }),
		with(entry("/e3", "a:1"), func(e *types.Entry) { e.FederatesWith = []string{"f1.test"}; e.Downstream = true }),
		with(entry("/e4", "d:4"), func(e *types.Entry) { e.ParentId = wireID("/other") }),
		with(entry("/e4", "d:5"), func(e *types.Entry) { e.Hint = "internal" }),
	)
	selectors := func(m types.SelectorMatch_MatchBehavior, list ...string) *types.SelectorMatch {
		return &types.SelectorMatch{Selectors: entry("/x", list...).Selectors, Match: m}
	}
	domains := func(m types.FederatesWithMatch_MatchBehavior, list ...string) *types.FederatesWithMatch {
		return &types.FederatesWithMatch{TrustDomains: list, Match: m}
	}
	type filter = entryv1.ListEntriesRequest_Filter
	for name, tc := range map[string]struct {
		filter *filter
		want   string
	}{
		"none":               {nil, "e1 e2 e3 e4 e4"},
		"empty":              {&filter{}, "e1 e2 e3 e4 e4"},
		"SPIFFE ID":          {&filter{BySpiffeId: wireID("/e4")}, "e4 e4"},
		"parent":             {&filter{ByParentId: wireID("/other")}, "e4"},
		"both":               {&filter{BySpiffeId: wireID("/e1"), ByParentId: wireID("/other")}, ""},
		"selectors exact":    {&filter{BySelectors: selectors(types.SelectorMatch_MATCH_EXACT, "b:2", "a:1")}, "e2"},
		"selectors subset":   {&filter{BySelectors: selectors(types.SelectorMatch_MATCH_SUBSET, "a:1", "b:2")}, "e2 e3"},
		"selectors superset": {&filter{BySelectors: selectors(types.SelectorMatch_MATCH_SUPERSET, "a:1", "b:2")}, "e1 e2"},
		"selectors any":      {&filter{BySelectors: selectors(types.SelectorMatch_MATCH_ANY, "c:3", "d:4")}, "e1 e4"},
		"domains exact":      {&filter{ByFederatesWith: domains(types.FederatesWithMatch_MATCH_EXACT, "f2.test", "f1.test")}, "e2"},
		"domains subset":     {&filter{ByFederatesWith: domains(types.FederatesWithMatch_MATCH_SUBSET, "f1.test", "f2.test")}, "e2 e3"},
		"domains superset":   {&filter{ByFederatesWith: domains(types.FederatesWithMatch_MATCH_SUPERSET, "f1.test", "f2.test")}, "e1 e2"},
		"domains any":        {&filter{ByFederatesWith: domains(types.FederatesWithMatch_MATCH_ANY, "spiffe://f3.test")}, "e1"},
		"hint":               {&filter{ByHint: wrapperspb.String("internal")}, "e2 e4"},
		"hint, empty":        {&filter{ByHint: wrapperspb.String("")}, "e1 e2 e3 e4 e4"},
		"downstream":         {&filter{ByDownstream: wrapperspb.Bool(true)}, "e3"},
		"downstream, false":  {&filter{ByDownstream: wrapperspb.Bool(false)}, "e1 e2 e3 e4 e4"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, err := f.ListEntries(t.Context(), &entryv1.ListEntriesRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range resp.Entries {
				got = append(got, strings.TrimPrefix(e.SpiffeId.Path, "/"))
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			count := &entryv1.CountEntriesRequest{}
			if tc.filter != nil {
				count.Filter = &entryv1.CountEntriesRequest_Filter{
					BySpiffeId: tc.filter.BySpiffeId, ByParentId: tc.filter.ByParentId, BySelectors: tc.filter.BySelectors,
					ByFederatesWith: tc.filter.ByFederatesWith, ByHint: tc.filter.ByHint, ByDownstream: tc.filter.ByDownstream,
				}
			}
			n, err := f.CountEntries(t.Context(), count)
			if err != nil || int(n.Count) != len(got) {
				t.Errorf("counted %v (%v), listed %d", n, err, len(got))
			}
		})
	}
	for name, bad := range map[string]*filter{
		"foreign SPIFFE ID": {BySpiffeId: &types.SPIFFEID{TrustDomain: "other.test", Path: "/x"}},
		"malformed parent":  {ByParentId: &types.SPIFFEID{TrustDomain: td.Name(), Path: "x"}},
		"pathless parent":   {ByParentId: &types.SPIFFEID{TrustDomain: td.Name()}},
		"no selectors":      {BySelectors: &types.SelectorMatch{}},
		"malformed":         {BySelectors: &types.SelectorMatch{Selectors: []*types.Selector{{Type: "a:b", Value: "c"}}}},
		"unknown match":     {BySelectors: selectors(9, "a:1")},
		"no domains":        {ByFederatesWith: &types.FederatesWithMatch{}},
		"malformed domain":  {ByFederatesWith: domains(0, "NOT A DOMAIN")},
		"unknown match 2":   {ByFederatesWith: domains(-1, "f1.test")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := f.ListEntries(t.Context(), &entryv1.ListEntriesRequest{Filter: bad})
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), "filter") {
				t.Errorf("got %v, want InvalidArgument that names the filter", err)
			}
		})
	}
}

// pages lists everything and returns the IDs and the sizes of the pages.
func (f *fixture) pages(t testing.TB, req *entryv1.ListEntriesRequest) (ids []string, sizes []int) {
	t.Helper()
	for {
		resp, err := f.ListEntries(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.Entries {
			ids = append(ids, e.Id)
		}
		sizes = append(sizes, len(resp.Entries))
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			return ids, sizes
		}
	}
}

func TestPaging(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 2500
	f.fill(t, n)
	all, _ := f.pages(t, &entryv1.ListEntriesRequest{})
	if len(all) != n || !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != n {
		t.Fatalf("listed %d entries, sorted %v", len(all), slices.IsSorted(all))
	}
	for _, tc := range []struct {
		size int32
		want []int
	}{
		{0, []int{n}},
		{1000, []int{1000, 1000, 500}},
		{1250, []int{1250, 1250}},
		{2499, []int{2499, 1}},
		{2500, []int{2500}},
		{2501, []int{2500}},
		{-1, []int{n}},
	} {
		t.Run(fmt.Sprint(tc.size), func(t *testing.T) {
			t.Parallel()
			ids, sizes := f.pages(t, &entryv1.ListEntriesRequest{PageSize: tc.size, OutputMask: &types.EntryMask{}})
			if diff := cmp.Diff(tc.want, sizes); diff != "" {
				t.Errorf("pages (-want +got):\n%s", diff)
			}
			if !slices.Equal(ids, all) {
				t.Errorf("%d entries differ from the whole list", len(ids))
			}
		})
	}
	if _, err := f.ListEntries(t.Context(), &entryv1.ListEntriesRequest{PageToken: strings.Repeat("x", maxToken+1)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("long token: %v, want InvalidArgument", err)
	}
}

// TestS12_PageSizeIsCapped asks for as many entries as an int32 can say: no
// message outgrows what clients take, no memory is made for what is not there,
// and nothing is left out.
func TestS12_PageSizeIsCapped(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var batch []*types.Entry
	for i := range 30 {
		e := entry(fmt.Sprintf("/big/%d", i))
		for j := range 64 { // 256 KiB each
			e.Selectors = append(e.Selectors, &types.Selector{Type: "t", Value: fmt.Sprintf("%04d", j) + strings.Repeat("v", 4092)})
		}
		batch = append(batch, e)
	}
	for part := range slices.Chunk(batch, 10) { // below the 4 MiB of a request
		f.create(t, part...)
	}
	for _, size := range []int32{0, math.MaxInt32} {
		ids, sizes := f.pages(t, &entryv1.ListEntriesRequest{PageSize: size})
		if len(ids) != len(batch) || len(slices.Compact(ids)) != len(batch) || len(sizes) < 3 {
			t.Errorf("page size %d: %d entries in pages of %v", size, len(ids), sizes)
		}
	}
	small := newFixture(t)
	small.create(t, entry("/one"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		small.pages(t, &entryv1.ListEntriesRequest{PageSize: math.MaxInt32})
	}
	runtime.ReadMemStats(&after)
	// Other tests run beside this one; 2³¹ of anything would still stand out.
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<30 {
		t.Errorf("ten lists of one entry allocated %d bytes", grown)
	}
}

func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := f.BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: make([]string, MaxBatch+1)})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "split") {
		t.Errorf("got %v, want InvalidArgument that says what to do", err)
	}
}

func TestExpiredEntryIsNotThere(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	e := entry("/soon")
	e.ExpiresAt = time.Now().Add(-time.Minute).Unix()
	id := f.create(t, e)[0].Id
	if _, err := f.GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: id}); status.Code(err) != codes.NotFound {
		t.Errorf("GetEntry: %v, want NotFound", err)
	}
	if ids, _ := f.pages(t, &entryv1.ListEntriesRequest{}); len(ids) != 0 {
		t.Errorf("listed %v", ids)
	}
}

// TestAuditRecordsEveryItem also is TestS05 of this room: selectors are not in
// the records.
func TestS05_AuditRecordsEveryItemWithoutSelectors(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const canary = "canary-7f3a"
	f.create(t, entry("/one", "unix:path:"+canary))
	bad := entry("/two", "unix:path:"+canary)
	bad.Selectors = append(bad.Selectors, &types.Selector{Type: "unix:" + canary, Value: canary})
	if _, err := f.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{bad}}); err != nil {
		t.Fatal(err)
	}
	log := f.Log.String()
	for _, want := range []string{"action=entry.create", "outcome=done", "outcome=refused", "caller=spiffe://example.org/spire/agent/join_token/a", "spiffe_id=spiffe://example.org/one"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, canary) {
		t.Errorf("a selector is in the log:\n%s", log)
	}
}
