package registry

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
)

func TestCreateEntries(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ix := follow(t, r)
	chosen := newEntry("/a", "/chosen")
	chosen.ID = "my.id_1-x"
	chosen.CreatedAt, chosen.RevisionNumber = time.Unix(1, 0), 7
	early := newEntry("/a", "/early")
	early.CreatedAt = time.Now().Add(time.Hour)
	before := time.Now().Truncate(time.Second)
	got := mustCreate(t, r, newEntry("/a", "/w"), chosen, early)
	if u, err := uuid.Parse(got[0].ID); err != nil || u.Version() != 7 {
		t.Errorf("ID made by the server: want a UUIDv7, got %q", got[0].ID)
	}
	if got[1].ID != "my.id_1-x" || got[1].RevisionNumber != 0 || !got[1].CreatedAt.Equal(time.Unix(1, 0)) {
		t.Errorf("chosen entry: got %+v", got[1])
	}
	for _, e := range []*Entry{got[0], got[2]} {
		if e.CreatedAt.Before(before) || e.CreatedAt.After(time.Now()) {
			t.Errorf("%s is created at %v", e.SPIFFEID, e.CreatedAt)
		}
	}
	for i, seconds := range []int64{-1, math.MinInt64, math.MaxInt64} {
		odd := newEntry("/a", fmt.Sprintf("/odd-%d", i))
		odd.CreatedAt = time.Unix(seconds, 0)
		if e := mustCreate(t, r, odd)[0]; e.CreatedAt.Before(before) || e.CreatedAt.After(time.Now()) {
			t.Errorf("created at %d: it is created at %v", seconds, e.CreatedAt)
		}
	}
	if chosen.RevisionNumber != 7 {
		t.Error("the caller's entry was changed")
	}
	caughtUp(t, r, ix)
	for _, want := range got {
		e, ok := ix.Entry(want.ID, time.Now())
		if diff := cmp.Diff(want, e, comparing); !ok || diff != "" {
			t.Errorf("entry in the index (-want +got):\n%s", diff)
		}
	}
	checkTables(t, r.store)
}

func TestCreateEntriesRefuses(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	first := newEntry("/a", "/w", "unix:uid:1", "unix:gid:1")
	first.ID = "first"
	mustCreate(t, r, first)
	sameID := newEntry("/a", "/other")
	sameID.ID = "first"
	federated := newEntry("/a", "/federated")
	federated.FederatesWith = []spiffeid.TrustDomain{other}
	manyFederated := newEntry("/a", "/many")
	for i := range 200 {
		manyFederated.FederatesWith = append(manyFederated.FederatesWith, spiffeid.RequireTrustDomainFromString(fmt.Sprintf("td%d", i)))
	}
	huge := newEntry("/a", "/huge")
	for i := range 200 {
		huge.Selectors = append(huge.Selectors, attest.Selector{Type: "x", Value: fmt.Sprintf("%04000d", i)})
	}
	huge.Selectors = attest.NewSelectors(huge.Selectors...)
	tests := []struct {
		name  string
		entry *Entry
		want  error
		text  string
	}{
		{"similar", newEntry("/a", "/w", "unix:gid:1", "unix:uid:1"), ErrExists, "first"},
		{"same ID", sameID, ErrExists, "first"},
		{"no bundle", federated, ErrInvalid, `federates_with: unable to find federated bundle "spiffe://other.org"`},
		{"no bundle of many", manyFederated, ErrInvalid, `federates_with: unable to find federated bundle "spiffe://td0"`},
		{"too large", huge, ErrInvalid, "record: is"},
		{"breaks a rule", newEntry("/a", "/spire/x"), ErrInvalid, "spiffe_id"},
	}
	batch := []*Entry{newEntry("/a", "/fine")}
	for _, tt := range tests {
		batch = append(batch, tt.entry)
	}
	got := r.CreateEntries(t.Context(), batch)
	if got[0].Err != nil {
		t.Errorf("an entry among refused ones: %v", got[0].Err)
	}
	for i, tt := range tests {
		res := got[i+1]
		if !errors.Is(res.Err, tt.want) || !strings.Contains(res.Err.Error(), tt.text) {
			t.Errorf("%s: want %v with %q, got %v", tt.name, tt.want, tt.text, res.Err)
		}
		if exists := errors.Is(tt.want, ErrExists); exists != (res.Entry != nil) || exists && res.Entry.ID != "first" {
			t.Errorf("%s: entry in the way: got %v", tt.name, res.Entry)
		}
	}
	checkTables(t, r.store)
}

func TestCreateEntriesFederated(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	few, many := newEntry("/a", "/few"), newEntry("/a", "/many")
	few.FederatesWith = []spiffeid.TrustDomain{other, other}
	for i := range 200 {
		name := spiffeid.RequireTrustDomainFromString(fmt.Sprintf("td%d", i))
		many.FederatesWith = append(many.FederatesWith, name)
	}
	for _, name := range append(many.FederatesWith, other) {
		if _, err := r.UpdateBundle(t.Context(), name, func(b *Bundle) error { b.RefreshHint = time.Minute; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	got := mustCreate(t, r, few, many)
	if len(got[0].FederatesWith) != 1 || len(got[1].FederatesWith) != 200 {
		t.Errorf("want 1 and 200 trust domains, got %d and %d", len(got[0].FederatesWith), len(got[1].FederatesWith))
	}
}

// A batch larger than an Update, in which entries repeat: the first of each
// wins, wherever the Updates are split.
func TestCreateEntriesLargeBatch(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var batch []*Entry
	for i := range 1000 {
		e := newEntry("/a", fmt.Sprintf("/w/%d", i%500))
		e.ID = fmt.Sprintf("e%d", i)
		batch = append(batch, e)
	}
	for i, res := range r.CreateEntries(t.Context(), batch) {
		switch {
		case i < 500 && (res.Err != nil || res.Entry.ID != batch[i].ID):
			t.Fatalf("entry %d: want it made, got %+v", i, res)
		case i >= 500 && (!errors.Is(res.Err, ErrExists) || res.Entry.ID != fmt.Sprintf("e%d", i-500)):
			t.Fatalf("entry %d: want ErrExists with e%d, got %+v", i, i-500, res)
		}
	}
	checkTables(t, r.store)
}

func TestCreateEntriesConcurrently(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var wg sync.WaitGroup
	made := make([]int, 8)
	for caller := range made {
		wg.Go(func() {
			var batch []*Entry
			for i := range 200 {
				batch = append(batch, newEntry("/a", fmt.Sprintf("/w/%d", (i+caller*25)%200)))
			}
			for _, res := range r.CreateEntries(t.Context(), batch) {
				if res.Err == nil {
					made[caller]++
				} else if !errors.Is(res.Err, ErrExists) {
					t.Error(res.Err)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range made {
		total += n
	}
	if total != 200 {
		t.Errorf("8 callers made %d of 200 distinct entries", total)
	}
	checkTables(t, r.store)
}

func TestCreateEntriesInThePlaceOfAnExpiredOne(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	// Put there with an expiry in the past, as if nobody had pruned yet.
	old := newEntry("/a", "/w")
	old.ID, old.ExpiresAt = "old", time.Now().Add(-time.Minute)
	mustCreate(t, r, old)
	got := mustCreate(t, r, newEntry("/a", "/w"))
	if have := content(t, r.store); have[entryKey("old")] != "" || have[entryKey(got[0].ID)] == "" {
		t.Error("the expired entry is still there, or the new one is not")
	}
	checkTables(t, r.store)
}

func TestUpdateEntries(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	a, b := newEntry("/a", "/w1"), newEntry("/a", "/w2")
	a.ID, b.ID = "a", "b"
	a.ExpiresAt = time.Now().Add(time.Hour)
	created := mustCreate(t, r, a, b)
	errMine := errors.New("mine")
	set := func(fn func(*Entry)) func(*Entry) error {
		return func(e *Entry) error { fn(e); return nil }
	}
	tests := []struct {
		name   string
		id     string
		change func(*Entry) error
		want   error
	}{
		{"hint", "a", set(func(e *Entry) { e.Hint = "h" }), nil},
		{"selectors and expiry", "a", set(func(e *Entry) { e.Selectors, e.ExpiresAt = sel("x:y"), time.Now().Add(2*time.Hour) }), nil},
		{"what is not to be set", "a", set(func(e *Entry) { e.ID, e.CreatedAt, e.RevisionNumber, e.ModRevision = "z", time.Unix(5, 0), 99, 99 }), nil},
		{"becomes similar", "a", set(func(e *Entry) { e.SPIFFEID, e.Selectors = id("/w2"), sel("unix:uid:1000") }), ErrExists},
		{"breaks a rule", "a", set(func(e *Entry) { e.X509SVIDTTL = -time.Second }), ErrInvalid},
		{"no bundle", "a", set(func(e *Entry) { e.FederatesWith = []spiffeid.TrustDomain{other} }), ErrInvalid},
		{"refused by the caller", "a", func(*Entry) error { return errMine }, errMine},
		{"not there", "c", set(func(*Entry) {}), ErrNotFound},
		{"no expiry", "a", set(func(e *Entry) { e.ExpiresAt = time.Time{} }), nil},
	}
	revision := int64(0)
	for _, tt := range tests {
		before := content(t, r.store)
		got := r.UpdateEntries(t.Context(), []EntryUpdate{{tt.id, tt.change}})[0]
		if !errors.Is(got.Err, tt.want) {
			t.Errorf("%s: want %v, got %v", tt.name, tt.want, got.Err)
		}
		if tt.want == nil {
			revision++
			if got.Entry.RevisionNumber != revision || got.Entry.ID != "a" || !got.Entry.CreatedAt.Equal(created[0].CreatedAt) {
				t.Errorf("%s: got %+v", tt.name, got.Entry)
			}
		} else if diff := cmp.Diff(before, content(t, r.store)); diff != "" {
			t.Errorf("%s: refused, and yet changed:\n%s", tt.name, diff)
		}
		if errors.Is(tt.want, ErrExists) && got.Entry.ID != "b" {
			t.Errorf("%s: want b in the way, got %v", tt.name, got.Entry)
		}
		checkTables(t, r.store)
	}
	ix := follow(t, r)
	caughtUp(t, r, ix)
	e, _ := ix.Entry("a", time.Now())
	want := created[0].Clone()
	want.Hint, want.Selectors, want.ExpiresAt, want.RevisionNumber = "h", sel("x:y"), time.Time{}, revision
	if diff := cmp.Diff(want, e, comparing, cmpopts.IgnoreFields(Entry{}, "ModRevision")); diff != "" {
		t.Errorf("in the end (-want +got):\n%s", diff)
	}
}

// More entries than fit into one Update, each with more trust domains than the
// estimate allows for: the batch is split until it fits.
func TestUpdateEntriesSplits(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var tds []spiffeid.TrustDomain
	for i := range 25 {
		tds = append(tds, spiffeid.RequireTrustDomainFromString(fmt.Sprintf("td%d", i)))
		if _, err := r.UpdateBundle(t.Context(), tds[i], func(*Bundle) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	var updates []EntryUpdate
	for i := range 100 {
		e := newEntry("/a", fmt.Sprintf("/w/%d", i))
		e.ID = fmt.Sprintf("e%d", i)
		mustCreate(t, r, e)
		updates = append(updates, EntryUpdate{e.ID, func(e *Entry) error {
			e.FederatesWith, e.SPIFFEID = tds, id(fmt.Sprintf("/v/%d", i))
			return nil
		}})
	}
	for i, res := range r.UpdateEntries(t.Context(), updates) {
		if res.Err != nil || len(res.Entry.FederatesWith) != 25 {
			t.Fatalf("entry %d: %+v", i, res)
		}
	}
	checkTables(t, r.store)
}

func TestDeleteEntries(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var del []string
	for i := range 300 {
		e := newEntry("/a", fmt.Sprintf("/w/%d", i))
		e.ID, e.ExpiresAt = fmt.Sprintf("e%d", i), time.Now().Add(time.Hour)
		mustCreate(t, r, e)
		del = append(del, e.ID)
	}
	errs := r.DeleteEntries(t.Context(), append(del, "e0", "unknown"))
	for i, err := range errs[:300] {
		// The repeated e0 may be removed by either of its two mentions.
		if err != nil && i != 0 {
			t.Errorf("%s: %v", del[i], err)
		}
	}
	if (errs[0] == nil) == (errs[300] == nil) {
		t.Errorf("an ID twice: want one success, got %v and %v", errs[0], errs[300])
	}
	if !errors.Is(errs[301], ErrNotFound) {
		t.Errorf("unknown ID: want ErrNotFound, got %v", errs[301])
	}
	if left := content(t, r.store); len(left) != 1 {
		t.Errorf("left in the store: %d keys, want only the trust domain", len(left))
	}
}

// Each item of a batch hears of the store's failure.
func TestBatchesWhenTheStoreFails(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	mustCreate(t, r, newEntry("/a", "/w"))
	r.store = &crash{Store: r.store, before: true}
	for _, res := range r.CreateEntries(t.Context(), []*Entry{newEntry("/a", "/x"), newEntry("/a", "/y")}) {
		if !errors.Is(res.Err, store.ErrUnavailable) || res.Entry != nil {
			t.Errorf("create: got %+v", res)
		}
	}
	if res := r.UpdateEntries(t.Context(), []EntryUpdate{{"a", func(*Entry) error { return nil }}})[0]; !errors.Is(res.Err, store.ErrUnavailable) || res.Entry != nil {
		t.Errorf("update: got %+v", res)
	}
	if err := r.DeleteEntries(t.Context(), []string{"a"})[0]; !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("delete: got %v", err)
	}
}

func BenchmarkCreateEntries50(b *testing.B) {
	r := newRegistry(b)
	n := 0
	for b.Loop() {
		var batch []*Entry
		for range 50 {
			n++
			batch = append(batch, newEntry("/spire/agent/x/1", fmt.Sprintf("/ns/%d/sa/%s", n%100, uuid.NewString()), fmt.Sprintf("unix:uid:%d", n), "unix:gid:5"))
		}
		mustCreate(b, r, batch...)
	}
	b.ReportMetric(float64(50*b.N)/b.Elapsed().Seconds(), "entries/s")
}
