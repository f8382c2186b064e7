package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/testing/protocmp"

	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// deleteBundle deletes a bundle by an index of its own.
func deleteBundle(t testing.TB, r *Registry, td spiffeid.TrustDomain, mode DeleteMode) error {
	t.Helper()
	ix := follow(t, r)
	return r.DeleteBundle(t.Context(), td, mode, ix, freshOf(r, ix))
}

// freshOf waits until the index has everything that is in the store.
func freshOf(r *Registry, ix *Index) func(context.Context) error {
	return func(ctx context.Context) error {
		head, err := r.store.Head(ctx)
		if err != nil {
			return err
		}
		return ix.WaitFor(ctx, head)
	}
}

func TestUpdateBundle(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	if _, err := r.LoadBundle(t.Context(), td); !errors.Is(err, ErrNotFound) {
		t.Errorf("no bundle yet: want ErrNotFound, got %v", err)
	}
	add := func(key string) func(*Bundle) error {
		return func(b *Bundle) error {
			b.TrustDomain, b.SequenceNumber = other, 77
			b.JWTAuthorities = append(b.JWTAuthorities, JWTAuthority{KeyID: key, PKIX: []byte{1}})
			return nil
		}
	}
	var got *Bundle
	for i, key := range []string{"a", "b"} {
		var err error
		if got, err = r.UpdateBundle(t.Context(), td, add(key)); err != nil {
			t.Fatal(err)
		}
		if got.SequenceNumber != uint64(i+1) || got.TrustDomain != td || len(got.JWTAuthorities) != i+1 {
			t.Errorf("after %s: got %+v", key, got)
		}
	}
	same, err := r.UpdateBundle(t.Context(), td, func(*Bundle) error { return nil })
	if err != nil || same.SequenceNumber != 2 || same.ModRevision != got.ModRevision {
		t.Errorf("no change: got %+v, %v", same, err)
	}
	loaded, err := r.LoadBundle(t.Context(), td)
	if diff := cmp.Diff(got, loaded, comparing); err != nil || diff != "" {
		t.Errorf("loaded (-want +got):\n%s %v", diff, err)
	}
	errMine := errors.New("mine")
	if _, err := r.UpdateBundle(t.Context(), td, func(*Bundle) error { return errMine }); !errors.Is(err, errMine) {
		t.Errorf("want the caller's error, got %v", err)
	}
	if err := deleteBundle(t, r, td, Restrict); !errors.Is(err, ErrInvalid) {
		t.Errorf("deleting the own bundle: want ErrInvalid, got %v", err)
	}
	if err := deleteBundle(t, r, other, Restrict); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleting an unknown bundle: want ErrNotFound, got %v", err)
	}
	if _, err := r.UpdateBundle(t.Context(), other, add("x")); err != nil {
		t.Fatal(err)
	}
	if err := deleteBundle(t, r, other, Restrict); err != nil {
		t.Error(err)
	}
}

// TestAppendedLeaveRoom: whoever may append authorities, such as a downstream
// server, can not keep this server from publishing its next one.
func TestAppendedLeaveRoom(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	own := func(b *Bundle) error {
		b.X509Authorities = append(b.X509Authorities, X509Authority{DER: make([]byte, 2<<10)})
		return nil
	}
	if _, err := r.UpdateBundle(t.Context(), td, own); err != nil {
		t.Fatal(err)
	}
	var err error
	add := &Bundle{}
	n := 0
	for ; err == nil && n < maxAuthorities; n++ {
		add = &Bundle{JWTAuthorities: []JWTAuthority{{KeyID: fmt.Sprintf("%01000d", n), PKIX: make([]byte, 100)}}}
		_, err = r.AppendBundle(t.Context(), add)
	}
	if !errors.Is(err, ErrInvalid) || n*1100 < maxAppended*9/10 {
		t.Fatalf("after %d keys: want ErrInvalid when the bundle has %d bytes, got %v", n, maxAppended, err)
	}
	for range 32 {
		if _, err := r.UpdateBundle(t.Context(), td, own); err != nil {
			t.Fatalf("the server's own: %v", err)
		}
	}
	// What is there already is no addition.
	add.JWTAuthorities[0].KeyID = fmt.Sprintf("%01000d", 0)
	if _, err := r.AppendBundle(t.Context(), add); err != nil {
		t.Errorf("appended again: %v", err)
	}
}

func TestUpdateBundleConcurrently(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := r.UpdateBundle(t.Context(), td, func(b *Bundle) error {
				b.X509Authorities = append(b.X509Authorities, X509Authority{DER: []byte{byte(len(b.X509Authorities))}})
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, err := r.LoadBundle(t.Context(), td)
	if err != nil || len(b.X509Authorities) != 20 || b.SequenceNumber != 20 {
		t.Errorf("want 20 authorities at 20, got %+v, %v", b, err)
	}
}

func TestJournals(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	empty, err := r.LoadJournal(t.Context(), "s1")
	if diff := cmp.Diff(&recordv1.Journal{}, empty, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("no journal: %v\n%s", err, diff)
	}
	slot := &recordv1.JournaledAuthority{Slot: "A", State: recordv1.JournaledAuthority_STATE_ACTIVE}
	b, j, err := r.UpdateAuthorities(t.Context(), "s1", func(b *Bundle, j *recordv1.Journal) error {
		b.X509Authorities = append(b.X509Authorities, X509Authority{DER: []byte{1}})
		j.X509 = append(j.X509, slot)
		return nil
	})
	if err != nil || b.SequenceNumber != 1 || len(j.GetX509()) != 1 {
		t.Fatalf("got %+v, %v, %v", b, j, err)
	}
	stored, err := r.LoadBundle(t.Context(), td)
	if err != nil || stored.ModRevision != b.ModRevision {
		t.Errorf("bundle returned at %d, stored at %d, %v", b.ModRevision, stored.ModRevision, err)
	}
	if _, err := r.UpdateJournal(t.Context(), "s1", func(j *recordv1.Journal) error {
		j.Jwt = append(j.Jwt, slot)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := &recordv1.Journal{X509: []*recordv1.JournaledAuthority{slot}, Jwt: []*recordv1.JournaledAuthority{slot}}
	got, err := r.LoadJournal(t.Context(), "s1")
	if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("journal (-want +got): %v\n%s", err, diff)
	}
	// One of the two refuses: neither is written.
	errMine := errors.New("mine")
	before := content(t, r.store)
	if _, _, err := r.UpdateAuthorities(t.Context(), "s1", func(b *Bundle, j *recordv1.Journal) error {
		b.X509Authorities, j.X509 = nil, nil
		return errMine
	}); !errors.Is(err, errMine) {
		t.Errorf("want the caller's error, got %v", err)
	}
	if diff := cmp.Diff(before, content(t, r.store)); diff != "" {
		t.Errorf("refused, and yet changed:\n%s", diff)
	}
	for _, bad := range []string{"", "a/b"} {
		if _, err := r.UpdateJournal(t.Context(), bad, func(*recordv1.Journal) error { return nil }); !errors.Is(err, ErrInvalid) {
			t.Errorf("server ID %q: want ErrInvalid, got %v", bad, err)
		}
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	now := time.Now().UTC().Truncate(time.Second)
	if at, err := r.NextExpiry(t.Context()); err != nil || !at.IsZero() {
		t.Errorf("nothing expires: got %v, %v", at, err)
	}
	var batch []*Entry
	for i := range 100 {
		e := newEntry("/a", "/w", "x:"+time.Duration(i).String())
		e.ExpiresAt = now.Add(time.Duration(i+1) * time.Minute)
		batch = append(batch, e)
	}
	mustCreate(t, r, append(batch, newEntry("/a", "/forever"))...)
	newToken(t, r, "unused")
	newToken(t, r, "used")
	if _, err := r.AttestAgent(t.Context(), newAgent("used"), "used", newKey()); err != nil {
		t.Fatal(err)
	}
	if at, err := r.NextExpiry(t.Context()); err != nil || !at.Equal(now.Add(time.Minute)) {
		t.Errorf("next expiry: want %v, got %v, %v", now.Add(time.Minute), at, err)
	}
	steps := []struct {
		at   time.Time
		want int
	}{
		{now, 0},
		{now.Add(time.Minute - 1), 0},
		{now.Add(time.Minute), 1},
		{now.Add(30 * time.Minute), 29},
		{now.Add(61 * time.Minute), 33}, // 31 entries, 2 tokens
		{now.Add(24 * time.Hour), 39},
		{now.Add(24 * time.Hour), 0},
	}
	for _, s := range steps {
		if n, err := r.Prune(t.Context(), s.at); err != nil || n != s.want {
			t.Errorf("at %v: want %d removed, got %d, %v", s.at.Sub(now), s.want, n, err)
		}
		checkTables(t, r.store)
	}
	kinds := map[string]int{}
	for key := range content(t, r.store) {
		kinds[key[:2]]++
	}
	// The entry without an expiry, and the alias of the agent.
	want := map[string]int{tableMeta: 1, tableEntry: 2, tableUnique: 2, tableAgent: 1}
	if diff := cmp.Diff(want, kinds); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// Run removes things at the moment they expire, also those that come later and
// expire earlier; it never wakes up for anything else.
func TestRunPrunesOnTime(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/store.db"
	synctest.Test(t, func(t *testing.T) {
		s := openBolt(t, path)
		defer func() { _ = s.Close() }()
		r := registryOn(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := r.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Run ended with %v", err)
			}
		})
		start := time.Now()
		for i, minutes := range []int{30, 10, 20} {
			e := newEntry("/a", "/w", "x:"+string(rune('a'+i)))
			e.ExpiresAt = start.Add(time.Duration(minutes) * time.Minute)
			mustCreate(t, r, e)
			synctest.Wait()
		}
		newToken(t, r, "tok") // expires in an hour, with its alias
		for _, step := range []struct {
			at   time.Duration
			want int
		}{{10*time.Minute - time.Second, 4}, {10 * time.Minute, 3}, {20 * time.Minute, 2}, {30 * time.Minute, 1}, {time.Hour + time.Second, 0}} {
			time.Sleep(time.Until(start.Add(step.at)))
			synctest.Wait()
			n := 0
			for key := range content(t, s) {
				if key[:2] == tableEntry {
					n++
				}
			}
			if n != step.want {
				t.Errorf("after %v: want %d entries, got %d", step.at, step.want, n)
			}
		}
		cancel()
		wg.Wait()
	})
}
