package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	other = spiffeid.RequireTrustDomainFromString("other.org")
)

// comparing makes cmp compare what is ours by value.
var comparing = cmp.Options{
	cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }),
	cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func openBolt(t testing.TB, path string) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newRegistry(t testing.TB) *Registry {
	t.Helper()
	return registryOn(t, openBolt(t, filepath.Join(t.TempDir(), "store.db")))
}

func registryOn(t testing.TB, s store.Store) *Registry {
	t.Helper()
	r, err := New(t.Context(), Config{Store: s, TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(td, path) }

func sel(texts ...string) attest.Selectors {
	var out []attest.Selector
	for _, s := range texts {
		typ, value, _ := strings.Cut(s, ":")
		out = append(out, attest.Selector{Type: typ, Value: value})
	}
	return attest.NewSelectors(out...)
}

func newEntry(parent, path string, selectors ...string) *Entry {
	if len(selectors) == 0 {
		selectors = []string{"unix:uid:1000"}
	}
	return &Entry{ParentID: id(parent), SPIFFEID: id(path), Selectors: sel(selectors...)}
}

func mustCreate(t testing.TB, r *Registry, entries ...*Entry) []*Entry {
	t.Helper()
	var out []*Entry
	for i, res := range r.CreateEntries(t.Context(), entries) {
		if res.Err != nil {
			t.Fatalf("entry %d: %v", i, res.Err)
		}
		out = append(out, res.Entry)
	}
	return out
}

// content is everything in the tables, by key.
func content(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := s.View(context.WithoutCancel(t.Context()), func(tx store.Tx) error {
		for kv, err := range tx.Scan("", "") {
			if err != nil {
				return err
			}
			out[kv.Key] = string(kv.Value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// checkTables holds the rules between tables: each entry has its unique key and
// its expiry, each agent's alias is there, and no such key is left over.
func checkTables(t testing.TB, s store.Store) {
	t.Helper()
	have := content(t, s)
	want := map[string]string{}
	for key, value := range have {
		kv := store.KV{Key: key, Value: []byte(value)}
		switch key[:2] {
		case tableEntry:
			e, err := decodeEntry(kv)
			if err != nil {
				t.Errorf("%q: %v", key, err)
				continue
			}
			want[uniqueKey(e)] = e.ID
			if !e.ExpiresAt.IsZero() {
				want[expiryKey(e.ExpiresAt, expiresEntry, e.ID)] = string(present)
			}
		case tableAgent:
			a, err := decodeAgent(td, kv)
			if err != nil {
				t.Errorf("%q: %v", key, err)
			}
			if a.AliasEntryID != "" && (a.Banned || have[entryKey(a.AliasEntryID)] == "") {
				t.Errorf("agent %s: alias %s should not be recorded", a.ID, a.AliasEntryID)
			}
		case tableToken:
			tok, err := decodeToken(kv)
			if err != nil {
				t.Errorf("%q: %v", key, err)
				continue
			}
			want[expiryKey(tok.ExpiresAt, expiresToken, key[2:])] = string(present)
		}
	}
	maps.DeleteFunc(have, func(key, _ string) bool { return key[:2] != tableUnique && key[:2] != tableExpiry })
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("keys that follow from the records (-want +got):\n%s", diff)
	}
}

func TestNewBindsTheStore(t *testing.T) {
	t.Parallel()
	s := openBolt(t, filepath.Join(t.TempDir(), "store.db"))
	for range 2 {
		if _, err := New(t.Context(), Config{Store: s, TrustDomain: td}); err != nil {
			t.Fatal(err)
		}
	}
	rev, err := s.Head(t.Context())
	if err != nil || rev != 1 {
		t.Errorf("binding twice: want one commit, head is %d, %v", rev, err)
	}
	_, err = New(t.Context(), Config{Store: s, TrustDomain: other})
	if !errors.Is(err, ErrTrustDomain) || !strings.Contains(err.Error(), "example.org") {
		t.Errorf("another trust domain: want ErrTrustDomain naming the first, got %v", err)
	}
	if _, err := New(t.Context(), Config{TrustDomain: td}); err == nil {
		t.Error("no store: want an error")
	}
	if _, err := New(t.Context(), Config{Store: s}); err == nil {
		t.Error("no trust domain: want an error")
	}
}

// follower runs Follow into an Index until the test ends.
func follow(t testing.TB, r *Registry) *Index {
	t.Helper()
	ix := NewIndex()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- r.Follow(ctx, func(c *Commit) error {
			ix.Apply(c)
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow ended with %v", err)
		}
	})
	return ix
}

// caughtUp waits until the index has everything that is in the store.
func caughtUp(t testing.TB, r *Registry, ix *Index) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	head, err := r.store.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := ix.WaitFor(ctx, head); err != nil {
		t.Fatalf("waiting for revision %d at %d: %v", head, ix.Revision(), err)
	}
}

func ids[T any](list []T, id func(T) string) []string {
	var out []string
	for _, x := range list {
		out = append(out, id(x))
	}
	return out
}

func entryID(e *Entry) string { return e.ID }

// crash is a store whose process dies at a chosen Update: before it is
// committed, or after, when the caller does not hear of it.
type crash struct {
	store.Store
	before, after bool
}

var errCrash = fmt.Errorf("%w: process died", store.ErrUnavailable)

func (c *crash) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	if c.before {
		return 0, errCrash
	}
	rev, err := c.Store.Update(ctx, fn)
	if c.after && err == nil {
		return 0, errCrash
	}
	return rev, err
}

func kvOf(entryID string, value []byte) store.KV {
	return store.KV{Key: entryKey(entryID), Value: value}
}
