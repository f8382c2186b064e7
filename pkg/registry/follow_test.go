package registry

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// tablesOf decodes what the store holds, the slow way.
func tablesOf(t testing.TB, s store.Store) (entries map[string]*Entry, agents map[string]*Agent, bundles map[string]*Bundle) {
	t.Helper()
	entries, agents, bundles = map[string]*Entry{}, map[string]*Agent{}, map[string]*Bundle{}
	err := s.View(t.Context(), func(tx store.Tx) error {
		for kv, err := range tx.Scan("", "") {
			if err != nil {
				return err
			}
			switch kv.Key[:2] {
			case tableEntry:
				if entries[kv.Key[2:]], err = decodeEntry(kv); err != nil {
					return err
				}
			case tableAgent:
				if agents[td.IDString()+"/"+kv.Key[2:]], err = decodeAgent(td, kv); err != nil {
					return err
				}
			case tableBundle:
				if bundles[kv.Key[2:]], err = decodeBundle(kv); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries, agents, bundles
}

func relationshipsOf(t testing.TB, s store.Store) (out []*FederationRelationship) {
	t.Helper()
	err := s.View(t.Context(), func(tx store.Tx) error {
		for kv, err := range tx.Scan(tableRelated, "") {
			if err != nil {
				return err
			}
			f, err := decodeRelationship(kv)
			if err != nil {
				return err
			}
			out = append(out, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// checkIndex holds an index that has caught up against the store.
func checkIndex(t testing.TB, r *Registry, ix *Index) {
	t.Helper()
	caughtUp(t, r, ix)
	wantEntries, wantAgents, wantBundles := tablesOf(t, r.store)
	entries, agents, bundles := map[string]*Entry{}, map[string]*Agent{}, map[string]*Bundle{}
	for after := ""; ; {
		list, next := ix.ListEntries(EntryFilter{}, after, 0, time.Time{})
		for _, e := range list {
			entries[e.ID] = e
		}
		if after = next; next == "" {
			break
		}
	}
	list, _ := ix.ListAgents(AgentFilter{}, "", 0)
	for _, a := range list {
		agents[a.ID.String()] = a
	}
	for _, b := range ix.Bundles() {
		bundles[b.TrustDomain.Name()] = b
	}
	related, _ := ix.ListRelationships("", 0)
	for _, diff := range []string{
		cmp.Diff(wantEntries, entries, comparing), cmp.Diff(wantAgents, agents, comparing), cmp.Diff(wantBundles, bundles, comparing),
		cmp.Diff(relationshipsOf(t, r.store), related, comparing),
	} {
		if diff != "" {
			t.Errorf("store, index (-want +got):\n%s", diff)
		}
	}
}

// scribble writes a bit of everything.
func scribble(t testing.TB, r *Registry, n int) {
	t.Helper()
	name := uuid.NewString()
	var batch []*Entry
	for i := range 30 {
		e := newEntry("/p", fmt.Sprintf("/%s/%d", name, i))
		if i%3 == 0 {
			e.ExpiresAt = time.Now().Add(time.Hour)
		}
		batch = append(batch, e)
	}
	made := mustCreate(t, r, batch...)
	res := r.UpdateEntries(t.Context(), []EntryUpdate{{made[0].ID, func(e *Entry) error { e.Hint = "h"; return nil }}})
	errs := r.DeleteEntries(t.Context(), ids(made[5:10], entryID))
	if err := errors.Join(append(errs, res[0].Err)...); err != nil {
		t.Error(err)
	}
	newToken(t, r, name)
	a, err := r.AttestAgent(t.Context(), newAgent(name), name, newKey())
	if err == nil && n%3 == 1 {
		err = r.BanAgent(t.Context(), a.ID)
	} else if err == nil && n%3 == 2 {
		err = r.DeleteAgent(t.Context(), a.ID)
	}
	if err != nil {
		t.Error(err)
	}
	if _, err := r.UpdateBundle(t.Context(), td, func(b *Bundle) error { b.RefreshHint += time.Second; return nil }); err != nil {
		t.Error(err)
	}
	for _, res := range r.UpdateRelationships(t.Context(), []RelationshipUpdate{
		{other, func(now *FederationRelationship) (*FederationRelationship, error) {
			if n%2 == 1 {
				return nil, nil
			}
			return &FederationRelationship{EndpointURL: "https://other.org/" + name}, nil
		}, nil},
	}) {
		if res.Err != nil {
			t.Error(res.Err)
		}
	}
}

// An index that follows from the first write, and one that comes late, both hold
// what the store holds.
func TestFollow(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	early := follow(t, r)
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 5 {
				scribble(t, r, n+i)
			}
		})
	}
	wg.Wait()
	late := follow(t, r)
	checkIndex(t, r, early)
	checkIndex(t, r, late)
	scribble(t, r, 0)
	checkIndex(t, r, early)
	checkIndex(t, r, late)
	checkTables(t, r.store)
}

// Commits come in revision order, without gaps, and say whose they are; more
// entries than one block of the decoder come in key order.
func TestFollowOrder(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var batch []*Entry
	for i := range 2*blockSize + 7 {
		batch = append(batch, newEntry("/p", fmt.Sprintf("/w/%d", i)))
	}
	mustCreate(t, r, batch...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last store.Revision
	var seen int
	err := r.Follow(ctx, func(c *Commit) error {
		if c.StoreID != r.store.Info().ID {
			t.Errorf("store ID is %q", c.StoreID)
		}
		switch {
		case seen == 0:
			if !c.Reset || len(c.Entries) != len(batch) {
				t.Errorf("first commit: reset %t, %d entries", c.Reset, len(c.Entries))
			}
			for i := range c.Entries[1:] {
				if c.Entries[i].ID >= c.Entries[i+1].ID {
					t.Fatal("entries are not in order")
				}
			}
			go func() {
				for range 10 {
					mustCreate(t, r, newEntry("/p", "/"+uuid.NewString()))
				}
			}()
		case c.Reset || c.Revision != last+1 || len(c.Entries) != 1 || c.Entries[0].Now.ModRevision() != c.Revision:
			t.Errorf("after %d: %+v", last, c)
		}
		last = c.Revision
		if seen++; seen == 11 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Follow ended with %v", err)
	}
}

// A consumer that falls behind what the store remembers starts over and misses
// nothing.
func TestFollowAfterCompaction(t *testing.T) {
	t.Parallel()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db"), RingBatches: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	r := registryOn(t, s)
	ix := NewIndex()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resets := 0
	err = r.Follow(ctx, func(c *Commit) error {
		ix.Apply(c)
		if c.Reset {
			resets++
		}
		switch resets {
		case 1:
			for range 100 {
				scribble(t, r, 0)
			}
		case 2:
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || resets != 2 {
		t.Errorf("Follow ended after %d resets with %v", resets, err)
	}
	checkIndex(t, r, ix)
}

func TestFollowEndsWithErrors(t *testing.T) {
	t.Parallel()
	errMine := errors.New("mine")
	r := newRegistry(t)
	if err := r.Follow(t.Context(), func(*Commit) error { return errMine }); !errors.Is(err, errMine) {
		t.Errorf("want the consumer's error, got %v", err)
	}
	put := func(key string) {
		if _, err := r.store.Update(t.Context(), func(tx store.RWTx) error { tx.Put(key, []byte{0xff}); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	// A record that cannot be read, live and then at the next start.
	for _, key := range []string{"e/broken", "a/spire/agent/x/broken", "b/broken.org"} {
		started := false
		err := r.Follow(t.Context(), func(*Commit) error {
			if !started {
				put(key)
			}
			started = true
			return nil
		})
		if !started || err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("%s, live: got %v", key, err)
		}
		err = r.Follow(t.Context(), func(*Commit) error { return errMine })
		if errors.Is(err, errMine) || err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("%s, at the start: got %v", key, err)
		}
		if _, err := r.store.Update(t.Context(), func(tx store.RWTx) error { tx.Delete(key); return nil }); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkFollowReset100k(b *testing.B) {
	r := newRegistry(b)
	for i := range 100 {
		var batch []*Entry
		for j := range 1000 {
			batch = append(batch, newEntry(fmt.Sprintf("/spire/agent/x/%d", i), fmt.Sprintf("/ns/%d/sa/%d", j, i), fmt.Sprintf("k8s:ns:%d", j), fmt.Sprintf("k8s:sa:%d", i)))
		}
		mustCreate(b, r, batch...)
	}
	errDone := errors.New("done")
	b.ReportAllocs()
	for b.Loop() {
		err := r.Follow(b.Context(), func(c *Commit) error {
			if len(c.Entries) != 100_000 {
				b.Fatal(len(c.Entries))
			}
			return errDone
		})
		if !errors.Is(err, errDone) {
			b.Fatal(err)
		}
	}
}
