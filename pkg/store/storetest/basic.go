package storetest

import (
	"bytes"
	"errors"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/store"
)

func testValues(t *testing.T, e Engine) {
	s := e.fresh(t)
	all := map[string]string{
		"a":                    "1",
		"a/b":                  "",
		"\x00":                 "\x00\xff",
		"\xff\xff":             "last",
		"nul\x00in\x00the/key": strings.Repeat("v", 100_000),
		"ü/文":                  "utf-8",
	}
	update(t, s, func(tx store.RWTx) {
		for k, v := range all {
			buf := []byte(v)
			tx.Put(k, buf)
			for i := range buf { // Put has copied it.
				buf[i] = '!'
			}
		}
	})
	wantContent(t, s, "", all)

	put(t, s, "a", "2")
	update(t, s, func(tx store.RWTx) {
		tx.Put("nil", nil)
		tx.Delete("\x00")
	})
	all["a"], all["nil"] = "2", ""
	delete(all, "\x00")
	wantContent(t, s, "", all)

	err := s.View(t.Context(), func(tx store.Tx) error {
		for k, v := range all {
			kv, err := tx.Get(k)
			if err != nil {
				t.Errorf("Get(%q): %v", k, err)
			}
			if kv.Key != k || kv.Value == nil || string(kv.Value) != v {
				t.Errorf("Get(%q) = %q, %q", k, kv.Key, kv.Value)
			}
		}
		for _, k := range []string{"\x00", "a/", "", strings.Repeat("k", store.MaxKey+1)} {
			_, err := tx.Get(k)
			wantErr(t, "Get of a key that is not there", err, store.ErrNotFound)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("View: %v", err)
	}
}

func testRevisions(t *testing.T, e Engine) {
	s := e.fresh(t)
	first := put(t, s, "a", "1", "b", "1")
	second := put(t, s, "b", "2")
	if first == 0 || second <= first {
		t.Fatalf("revisions %d, %d do not grow", first, second)
	}
	third := update(t, s, func(tx store.RWTx) {
		if got := tx.Revision(); got != second {
			t.Errorf("Revision in Update = %d, want %d", got, second)
		}
		tx.Put("c", []byte("3"))
		kv, err := tx.Get("c")
		if err != nil || kv.ModRevision != 0 || string(kv.Value) != "3" {
			t.Errorf("Get of an own write = %+v, %v", kv, err)
		}
		tx.Delete("a")
		_, err = tx.Get("a")
		wantErr(t, "Get of an own Delete", err, store.ErrNotFound)
		tx.Put("a", []byte("again"))
	})
	if got := head(t, s); got != third {
		t.Errorf("Head = %d, want %d", got, third)
	}
	want := map[string]store.Revision{"a": third, "b": second, "c": third}
	got := make(map[string]store.Revision)
	err := s.View(t.Context(), func(tx store.Tx) error {
		if tx.Revision() != third {
			t.Errorf("Revision in View = %d, want %d", tx.Revision(), third)
		}
		for kv, err := range tx.Scan("", "") {
			if err != nil {
				return err
			}
			got[kv.Key] = kv.ModRevision
		}
		return nil
	})
	if err != nil {
		t.Fatalf("View: %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ModRevision (-want +got):\n%s", diff)
	}
}

func testEmptyUpdate(t *testing.T, e Engine) {
	s := e.fresh(t)
	at := put(t, s, "a", "1")
	for name, fn := range map[string]func(store.RWTx){
		"nothing":              func(store.RWTx) {},
		"reads":                func(tx store.RWTx) { _, _ = tx.Get("a"); _, _ = scanned(tx, "", "") },
		"deletes what is not":  func(tx store.RWTx) { tx.Delete("b"); tx.Delete("aa") },
		"puts and takes back":  func(tx store.RWTx) { tx.Put("b", nil); tx.Delete("b") },
		"deletes absent twice": func(tx store.RWTx) { tx.Delete("b"); tx.Delete("b") },
	} {
		if got := update(t, s, fn); got != at {
			t.Errorf("an Update that %s returned %d, want %d", name, got, at)
		}
	}
	if got := head(t, s); got != at {
		t.Errorf("Head = %d, want %d", got, at)
	}
	last := put(t, s, "c", "2")
	for b, err := range s.Watch(soon(t), "", at) {
		if err != nil || b.Revision != last {
			t.Errorf("next batch is %d, %v; want %d", b.Revision, err, last)
		}
		break
	}
}

func testFailedUpdate(t *testing.T, e Engine) {
	s := e.fresh(t)
	at := put(t, s, "a", "1")
	want := errors.New("no")
	_, err := s.Update(t.Context(), func(tx store.RWTx) error {
		tx.Put("a", []byte("2"))
		tx.Put("b", []byte("2"))
		tx.Delete("a")
		return want
	})
	if err != want { //nolint:errorlint // The contract says: as it is.
		t.Errorf("Update returned %v, want the function's error as it is", err)
	}
	if err := s.View(t.Context(), func(store.Tx) error { return want }); err != want { //nolint:errorlint // As above.
		t.Errorf("View returned %v, want the function's error as it is", err)
	}
	if got := wantContent(t, s, "", map[string]string{"a": "1"}); got != at {
		t.Errorf("revision is %d, want %d", got, at)
	}
}

func testPanic(t *testing.T, e Engine) {
	s := e.fresh(t)
	at := put(t, s, "a", "1")
	recovered := func(fn func()) (r any) {
		defer func() { r = recover() }()
		fn()
		return nil
	}
	if got := recovered(func() {
		_, _ = s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Put("a", []byte("2"))
			panic("update")
		})
	}); got != "update" {
		t.Errorf("recovered %v from Update", got)
	}
	if got := recovered(func() {
		_ = s.View(t.Context(), func(store.Tx) error { panic("view") })
	}); got != "view" {
		t.Errorf("recovered %v from View", got)
	}
	// A function that ends its goroutine (as t.FailNow does) is no different.
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Put("a", []byte("3"))
			runtime.Goexit()
			return nil
		})
	})
	wg.Wait()
	if got := wantContent(t, s, "", map[string]string{"a": "1"}); got != at {
		t.Errorf("revision is %d, want %d", got, at)
	}
	if got := put(t, s, "a", "4"); got <= at {
		t.Errorf("revision after panics is %d, want more than %d", got, at)
	}
}

func testInfo(t *testing.T, e Engine) {
	a, b := e.fresh(t).Info(), e.fresh(t).Info()
	id := regexp.MustCompile(`^[0-9a-f]{32}$`)
	if !id.MatchString(a.ID) || !id.MatchString(b.ID) || a.ID == b.ID {
		t.Errorf("store IDs %q and %q", a.ID, b.ID)
	}
	if a.Engine == "" || a.Format < 1 {
		t.Errorf("Info = %+v", a)
	}
}

// testNeighbours runs good, failing, too large, panicking and empty Updates at
// the same time: each gets its own outcome.
func testNeighbours(t *testing.T, e Engine) {
	stores := e.handles(t, 2)
	no := errors.New("no")
	var wg sync.WaitGroup
	const rounds, clients = 20, 10
	revs := make([][]store.Revision, clients)
	for i := range clients {
		s := stores[i%2]
		wg.Go(func() {
			for n := range rounds {
				key := string(rune('a'+i)) + "/" + string(rune('a'+n))
				var panicked any
				rev, err := func() (rev store.Revision, err error) {
					defer func() { panicked = recover() }()
					return s.Update(t.Context(), func(tx store.RWTx) error {
						tx.Put(key, []byte("x"))
						switch i % 5 {
						case 1:
							return no
						case 2:
							tx.Put("big", bytes.Repeat([]byte("x"), store.MaxBytes+1))
						case 3:
							panic(no)
						case 4:
							tx.Delete(key)
						}
						return nil
					})
				}()
				want := [...]error{nil, no, store.ErrTooLarge, nil, nil}[i%5]
				wantErr(t, "Update of "+key, err, want)
				if (panicked != nil) != (i%5 == 3) {
					t.Errorf("Update of %s panicked: %v", key, panicked)
				}
				revs[i] = append(revs[i], rev)
			}
		})
	}
	wg.Wait()
	want := make(map[string]string)
	seen := make(map[store.Revision]bool)
	for i := 0; i < clients; i += 5 {
		for n := range rounds {
			want[string(rune('a'+i))+"/"+string(rune('a'+n))] = "x"
			if seen[revs[i][n]] {
				t.Errorf("revision %d was given twice", revs[i][n])
			}
			seen[revs[i][n]] = true
		}
	}
	wantContent(t, stores[0], "", want)
}
