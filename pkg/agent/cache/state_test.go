package cache_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	agentstatev1 "github.com/credence-id/credence/proto/agentstate/v1"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// TestRestartWhileTheServerIsAway, with and without keys kept.
func TestRestartWhileTheServerIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		first := newCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "b"))
		s.Sync(first)
		was := await(t, first.Subscribe(sel("a")))
		synctest.Wait()
		s.SetDown(errAway)

		restored := func(withKeys bool) *cache.Cache {
			data, err := proto.Marshal(first.Snapshot(withKeys))
			if err != nil {
				t.Fatal(err)
			}
			state := &agentstatev1.State{}
			if err := proto.Unmarshal(data, state); err != nil {
				t.Fatal(err)
			}
			c := newCache(t, s)
			if err := c.Restore(state); err != nil {
				t.Fatal(err)
			}
			return c
		}
		with, without := restored(true), restored(false)
		start := time.Now()
		g, err := fetch(t.Context(), with, "a")
		if err != nil {
			t.Fatal(err)
		}
		verify(t, g)
		if string(g.Identities[0].PrivateKey) != string(was.Identities[0].PrivateKey) {
			t.Error("the key is another one")
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("served after %s", d)
		}
		with.Away(errAway)
		start = time.Now()
		if _, err := fetch(t.Context(), with, "b"); err != nil || time.Since(start) != 0 {
			t.Errorf("known to be away: %v after %s", err, time.Since(start))
		}
		without.Away(errAway)
		_, err = fetch(t.Context(), without, "a")
		wantErr(t, err, cache.ErrUnavailable)

		// Both say what they hold, so the server sends what differs only.
		for _, c := range []*cache.Cache{with, without} {
			if diff := cmp.Diff(first.Open(), c.Open(), protocmp.Transform()); diff != "" {
				t.Errorf("Open (-before the restart +after):\n%s", diff)
			}
		}
		s.SetDown(nil)
		before := total(s)
		if err := with.Synced(s.Synced()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := total(s) - before; n != 0 {
			t.Errorf("%d SVIDs were minted although they were kept", n)
		}
		if err := without.Synced(s.Synced()); err != nil {
			t.Fatal(err)
		}
		g, err = fetch(t.Context(), without, "a")
		if err != nil {
			t.Fatal(err)
		}
		verify(t, g)
		// What was restored is rotated as if nothing had happened.
		w := watch(t, with, "a")
		time.Sleep(55 * time.Minute)
		synctest.Wait()
		if string(w.look().Identities[0].PrivateKey) == string(was.Identities[0].PrivateKey) {
			t.Error("not rotated")
		}
	})
}

func TestRestoreLeavesOutWhatIsNotGood(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*agentstatev1.State){
		"another entry":   func(s *agentstatev1.State) { s.X509Svids[0].EntryId = "e2" },
		"no such entry":   func(s *agentstatev1.State) { s.X509Svids[0].EntryId = "e3" },
		"older revision":  func(s *agentstatev1.State) { s.X509Svids[0].EntryRevision-- },
		"no key":          func(s *agentstatev1.State) { s.X509Svids[0].PrivateKey = nil },
		"another key":     func(s *agentstatev1.State) { s.X509Svids[0].PrivateKey = s.X509Svids[1].PrivateKey },
		"no chain":        func(s *agentstatev1.State) { s.X509Svids[0].Chain = nil },
		"not a chain":     func(s *agentstatev1.State) { s.X509Svids[0].Chain = []byte("x") },
		"bad bundle":      func(s *agentstatev1.State) { s.Bundles[0].Bundle.TrustDomain = "/"; s.X509Svids = nil },
		"entry has no ID": func(s *agentstatev1.State) { s.Entries = append(s.Entries, &feedv1.EntryVersion{}); s.X509Svids = nil },
		"entry has moved": func(s *agentstatev1.State) { s.Entries[0].Entry.SpiffeId.Path = "/moved" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := cachetest.New(t, "example.org")
			first := newCache(t, s)
			s.Put(s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "b"))
			s.Sync(first)
			await(t, first.Subscribe(sel("a", "b")))
			state := proto.CloneOf(first.Snapshot(true))
			if state.X509Svids[0].EntryId != "e1" {
				state.X509Svids[0], state.X509Svids[1] = state.X509Svids[1], state.X509Svids[0]
			}
			if state.Entries[0].Entry.Id != "e1" {
				state.Entries[0], state.Entries[1] = state.Entries[1], state.Entries[0]
			}
			spoil(state)
			c := idleCache(t, s)
			if err := c.Restore(state); err != nil {
				t.Fatal(err)
			}
			if g := c.Subscribe(sel("a")).Latest(); len(g.Identities) != 0 || g.Matched != 1 {
				t.Errorf("%d identities of %d entries", len(g.Identities), g.Matched)
			}
		})
	}
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := idleCache(t, s)
	s.Put(s.Entry("e1", "/one", "a"))
	s.Sync(c)
	if err := c.Restore(c.Snapshot(false)); err == nil {
		t.Error("a cache in use was restored over")
	}
}

// TestChanges: the state is worth keeping after what changes it, and after
// nothing else.
func TestChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		changed := func(withKeys bool) bool {
			synctest.Wait()
			select {
			case <-c.Changes(withKeys):
				return true
			default:
				return false
			}
		}
		if changed(false) || changed(true) {
			t.Error("an empty cache has changed")
		}
		s.Put(s.Entry("e1", "/one", "a"))
		s.Sync(c)
		if !changed(false) || !changed(true) {
			t.Error("not after a sync")
		}
		for range 3 {
			if _, err := fetch(t.Context(), c, "a"); err != nil {
				t.Fatal(err)
			}
		}
		if changed(false) || changed(true) {
			t.Error("a workload's call has changed the state")
		}
		time.Sleep(40 * time.Minute)
		if changed(false) || !changed(true) {
			t.Error("a rotation changes the state with keys, and only that")
		}
	})
}

// TestVerifierWhileTheServerIsAway: bundles of an earlier run are good for who
// has an identity; who has none is told that this is not known, and may be given
// the bundle.
func TestVerifierWhileTheServerIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		first := idleCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"))
		s.Sync(first)
		c := newCache(t, s)
		if err := c.Restore(first.Snapshot(false)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if g, err := c.Subscribe(sel("a")).AwaitSync(t.Context()); err != nil || g.Bundle == nil || time.Since(start) > 2*time.Second {
			t.Errorf("with identity: %v after %s", err, time.Since(start))
		}
		g, err := c.Subscribe(sel("unknown")).AwaitSync(t.Context())
		wantErr(t, err, cache.ErrUnavailable)
		if g == nil || g.Bundle == nil {
			t.Error("the bundle does not come with the error")
		}
	})
}
