package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

func TestChangesReachTheWorkload(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	entry := s.Entry("e1", "/one", "a")
	s.Put(entry)
	s.Sync(c)
	sub := c.Subscribe(sel("a", "b"))
	defer sub.Close()

	first := await(t, sub)
	verify(t, first)
	if diff := cmp.Diff([]string{"/one"}, ids(first)); diff != "" {
		t.Fatalf("identities (-want +got):\n%s", diff)
	}

	entry.DnsNames = []string{"one.example.org"}
	put(t, c, s, entry)
	second := eventually(t, sub, "an SVID with the DNS name", func(g *cache.Grant) bool {
		return len(g.Identities) == 1 && bytes.Contains(g.Identities[0].X509SVID, []byte("one.example.org"))
	})
	if bytes.Equal(first.Identities[0].PrivateKey, second.Identities[0].PrivateKey) {
		t.Error("the new SVID has the old key")
	}

	entry.SpiffeId.Path = "/moved"
	put(t, c, s, entry, s.Entry("e2", "/two", "b"), s.Entry("e3", "/not-ours", "c"))
	third := eventually(t, sub, "both entries", func(g *cache.Grant) bool { return slices.Equal(ids(g), []string{"/moved", "/two"}) })
	verify(t, third)

	if err := c.Apply(s.Remove("e1")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/two"}, ids(sub.Latest())); diff != "" {
		t.Errorf("right after a removal (-want +got):\n%s", diff)
	}
	if err := c.Apply(s.Remove("e2")); err != nil {
		t.Fatal(err)
	}
	if g := sub.Latest(); g.Matched != 0 || len(g.Identities) != 0 {
		t.Errorf("with nothing left: %d entries, %d identities", g.Matched, len(g.Identities))
	}
	_, err := fetch(t.Context(), c, "a", "b")
	wantErr(t, err, cache.ErrNoIdentity)
}

// TestUpdateIsSeenOnce: the open stream is not told of the time between an
// update and its SVID.
func TestUpdateIsSeenOnce(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	entry := s.Entry("e1", "/one", "a")
	s.Put(entry)
	s.Sync(c)
	sub := c.Subscribe(sel("a"))
	defer sub.Close()
	first := await(t, sub)
	sub.Latest()

	unblock := s.Block()
	entry.SpiffeId.Path, entry.Hint = "/moved", "new"
	put(t, c, s, entry)
	select {
	case <-sub.Changed():
		t.Fatal("told before there was an SVID")
	default:
	}
	if got := sub.Latest().Identities[0]; got.SPIFFEID.Path() != "/one" || got.Hint != "" || !bytes.Equal(got.X509SVID, first.Identities[0].X509SVID) {
		t.Errorf("before the new SVID: %s with hint %q", got.SPIFFEID, got.Hint)
	}
	unblock()
	<-sub.Changed()
	if got := sub.Latest().Identities[0]; got.SPIFFEID.Path() != "/moved" || got.Hint != "new" {
		t.Errorf("after: %s with hint %q", got.SPIFFEID, got.Hint)
	}
}

// TestUpdateRefused: an identity that an entry does not have any more is not
// shown longer than it takes to learn that there is no other.
func TestUpdateRefused(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	moved, hinted := s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "a")
	s.Put(moved, hinted)
	s.Sync(c)
	sub := c.Subscribe(sel("a"))
	defer sub.Close()
	await(t, sub)

	s.SetDown(errAway)
	moved.SpiffeId.Path, hinted.Hint = "/moved", "hint"
	put(t, c, s, moved, hinted)
	g := eventually(t, sub, "the old identity is gone", func(g *cache.Grant) bool { return slices.Equal(ids(g), []string{"/two"}) })
	if g.Identities[0].Hint != "hint" {
		t.Error("the hint, which is not in the certificate, has not changed")
	}
	s.SetDown(nil)
	eventually(t, sub, "the new identity", func(g *cache.Grant) bool { return slices.Equal(ids(g), []string{"/moved", "/two"}) })
}

func TestHints(t *testing.T) {
	t.Parallel()
	hinted := func(e *types.Entry, hint string, createdAt int64) *types.Entry {
		e.Hint, e.CreatedAt = hint, createdAt
		return e
	}
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	s.Put(
		hinted(s.Entry("a", "/younger", "x"), "internal", 20),
		hinted(s.Entry("b", "/oldest", "x"), "internal", 10),
		hinted(s.Entry("c", "/second", "x"), "external", 10),
		hinted(s.Entry("d", "/second-by-id", "x"), "external", 10),
		hinted(s.Entry("e", "/none", "x"), "", 1),
		hinted(s.Entry("f", "/none-too", "x"), "", 1),
	)
	s.Sync(c)
	sub := c.Subscribe(sel("x"))
	defer sub.Close()
	want := []string{"/oldest", "/second", "/none", "/none-too"}
	if diff := cmp.Diff(want, ids(await(t, sub))); diff != "" {
		t.Errorf("identities (-want +got):\n%s", diff)
	}
	jwts, err := c.FetchJWT(t.Context(), sel("x"), []string{"aud"}, noID)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, j := range jwts {
		got = append(got, j.SPIFFEID.Path())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("JWT-SVIDs (-want +got):\n%s", diff)
	}
	// Its heir takes the hint over.
	if err := c.Apply(s.Remove("b")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/younger", "/second", "/none", "/none-too"}, ids(sub.Latest())); diff != "" {
		t.Errorf("after the oldest is gone (-want +got):\n%s", diff)
	}
}

func TestEntriesThatAreNotServed(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	foreign := s.Entry("foreign", "/x", "a")
	foreign.SpiffeId.TrustDomain = "evil.org"
	stored := s.Entry("stored", "/x", "a")
	stored.StoreSvid = true
	bad := s.Entry("bad", "/../x", "a")
	none := s.Entry("none", "/x")
	huge := s.Entry("huge", "/x", "a", strings.Repeat("v", 5000))
	c := newCache(t, s)
	s.Put(foreign, stored, bad, none, huge, s.Entry("good", "/good", "a"))
	s.Sync(c) // the digest counts all of them
	g, err := fetch(t.Context(), c, "a", strings.Repeat("v", 5000))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/good"}, ids(g)); diff != "" || g.Matched != 1 {
		t.Errorf("%d entries matched; identities (-want +got):\n%s", g.Matched, diff)
	}
}

func TestS18_WipeEndsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	s.Put(s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "a"))
	s.Sync(c)
	sub := c.Subscribe(sel("a"))
	defer sub.Close()
	await(t, sub)
	if _, err := c.FetchJWT(t.Context(), sel("a"), []string{"aud"}, noID); err != nil {
		t.Fatal(err)
	}
	// An answer that is under way must not bring anything back.
	unblock := s.Block()
	put(t, c, s, s.Entry("e3", "/three", "a"))
	sub.Latest()

	c.Wipe()
	select {
	case <-sub.Changed():
	default:
		t.Error("the subscriber was not told")
	}
	if g := sub.Latest(); g.Matched != 0 || len(g.Identities) != 0 || g.Bundle != nil {
		t.Errorf("still held: %d entries, %d identities, bundle %v", g.Matched, len(g.Identities), g.Bundle)
	}
	unblock()
	for range 3 {
		_, err := fetch(t.Context(), c, "a")
		wantErr(t, err, cache.ErrNoIdentity)
		_, err = c.FetchJWT(t.Context(), sel("a"), []string{"aud"}, noID)
		wantErr(t, err, cache.ErrNoIdentity)
		time.Sleep(5 * time.Millisecond)
	}
	if st := c.Snapshot(true); len(st.GetEntries())+len(st.GetBundles())+len(st.GetX509Svids()) != 0 || st.GetStoreId() != "" {
		t.Errorf("would be persisted: %v", st)
	}
	if o := c.Open(); len(o.GetBuckets()) != 0 || o.GetStoreId() != "" {
		t.Errorf("Open after Wipe is not empty: %v", o)
	}
	// An agent that was evicted and attests again is served again.
	s.Sync(c)
	eventually(t, sub, "all three", func(g *cache.Grant) bool { return len(g.Identities) == 3 })
}

func TestWaitForTheFirstSync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		start := time.Now()
		go func() {
			time.Sleep(4 * time.Second)
			s.Put(s.Entry("e1", "/one", "a"))
			s.Sync(c)
		}()
		if _, err := fetch(t.Context(), c, "a"); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != 4*time.Second {
			t.Errorf("served after %s, the first sync was after 4s", d)
		}
		start = time.Now()
		_, err := fetch(t.Context(), c, "nothing")
		wantErr(t, err, cache.ErrNoIdentity)
		if d := time.Since(start); d != 0 {
			t.Errorf("refused after %s, in sync", d)
		}
	})
}

func TestNoSync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		c.Away(errors.New("connection refused"))
		start := time.Now()
		_, err := fetch(t.Context(), c, "a")
		wantErr(t, err, cache.ErrUnavailable)
		if !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("the reason is missing: %v", err)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("gave up after %s, want 10s", d)
		}
		_, err = c.FetchJWT(t.Context(), sel("a"), []string{"aud"}, noID)
		wantErr(t, err, cache.ErrUnavailable)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = fetch(ctx, c, "a")
		wantErr(t, err, context.DeadlineExceeded)
	})
}

func TestServerAwayAtFirstMint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		s.Sync(c)
		s.SetDown(errAway)
		put(t, c, s, s.Entry("e1", "/one", "a"))
		start := time.Now()
		_, err := fetch(t.Context(), c, "a")
		wantErr(t, err, cache.ErrUnavailable)
		wantErr(t, err, errAway)
		if d := time.Since(start); d != 0 {
			t.Errorf("refused after %s", d)
		}
		// It keeps trying by itself, with growing pauses.
		sub := c.Subscribe(sel("a"))
		defer sub.Close()
		time.Sleep(10 * time.Minute)
		if n := len(s.Batches()); n != 0 {
			t.Errorf("%d calls got through to a server that is down", n)
		}
		s.SetDown(nil)
		time.Sleep(time.Minute)
		verify(t, await(t, sub))
		// When the feed is back it tries at once.
		s.SetDown(errAway)
		put(t, c, s, s.Entry("e2", "/two", "b"))
		time.Sleep(10 * time.Minute)
		s.SetDown(nil)
		s.Sync(c)
		if _, err := fetch(t.Context(), c, "b"); err != nil {
			t.Errorf("right after the server is back: %v", err)
		}
	})
}

// TestFreshWorkloadWhileTheServerIsAway: the warm set serves workloads that were
// never seen before.
func TestFreshWorkloadWhileTheServerIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		cold := s.Entry("cold", "/cold", "cold")
		cold.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true}
		for i := range 20 {
			s.Put(s.Entry(fmt.Sprint(i), fmt.Sprintf("/%d", i), fmt.Sprint("v", i)))
		}
		s.Put(cold)
		s.Sync(c)
		synctest.Wait()
		s.SetDown(errAway)
		for i := range 20 {
			g, err := fetch(t.Context(), c, fmt.Sprint("v", i))
			if err != nil {
				t.Fatalf("workload %d: %v", i, err)
			}
			verify(t, g)
		}
		_, err := fetch(t.Context(), c, "cold")
		wantErr(t, err, cache.ErrUnavailable)
		s.SetDown(nil)
		time.Sleep(time.Minute)
		if _, err := fetch(t.Context(), c, "cold"); err != nil {
			t.Errorf("on demand: %v", err)
		}
		if got := c.Budget(time.Now()).Left; got <= 50*time.Minute || got > time.Hour {
			t.Errorf("outage budget is %s with SVIDs of an hour", got)
		}
	})
}

func TestGrantIsSharedAndEncodedOnce(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	s.Put(s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "b"))
	s.Sync(c)
	type form struct{}
	encoded := 0
	encode := func(*cache.Grant) ([]byte, error) {
		encoded++
		return []byte{1}, nil
	}
	var first *cache.Grant
	for i := range 100 {
		// Workloads with other selectors that match the same entries share.
		sub := c.Subscribe(sel("a", fmt.Sprint("pod", i)))
		defer sub.Close()
		g := await(t, sub)
		if first == nil {
			first = g
		}
		if g != first {
			t.Fatal("the grant is not shared")
		}
		if _, err := g.Encoded(form{}, encode); err != nil {
			t.Fatal(err)
		}
	}
	if encoded != 1 {
		t.Errorf("encoded %d times", encoded)
	}
	// What does not change the content does not change the encoding.
	put(t, c, s, s.Entry("e3", "/three", "c"))
	s.Sync(c)
	sub := c.Subscribe(sel("a", "another"))
	defer sub.Close()
	if _, err := await(t, sub).Encoded(form{}, encode); err != nil || encoded != 1 {
		t.Errorf("encoded %d times, %v", encoded, err)
	}
}

func TestFederatedBundles(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	foreign, other := cachetest.New(t, "foreign.org"), cachetest.New(t, "other.org")
	c := newCache(t, s)
	with := s.Entry("e1", "/one", "a")
	with.FederatesWith = []string{"foreign.org", "spiffe://unknown.org", "example.org"}
	s.Put(with, s.Entry("e2", "/two", "b"))
	s.Sync(c)
	d := s.Put()
	d.Bundles = append(d.Bundles, foreign.Bundle(), other.Bundle())
	if err := c.Apply(d); err != nil {
		t.Fatal(err)
	}
	sub := c.Subscribe(sel("a"))
	defer sub.Close()
	names := func(g *cache.Grant) []string {
		out := []string{}
		for _, b := range g.Federated {
			out = append(out, b.TrustDomain.Name())
		}
		return out
	}
	if diff := cmp.Diff([]string{"foreign.org"}, names(await(t, sub))); diff != "" {
		t.Errorf("federated (-want +got):\n%s", diff)
	}
	if g, err := fetch(t.Context(), c, "b"); err != nil || len(g.Federated) != 0 {
		t.Errorf("an entry that does not federate: %v %v", names(g), err)
	}
	d = s.Put()
	d.RemovedBundles = []string{"foreign.org"}
	if err := c.Apply(d); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{}, names(sub.Latest())); diff != "" {
		t.Errorf("after the removal (-want +got):\n%s", diff)
	}
}

// TestConnectionsLeaveNothing: what workloads that come and go leave behind has
// a bound.
func TestConnectionsLeaveNothing(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s, func(cfg *cache.Config) { cfg.MaxX509SVIDs = 10 })
	var entries []*types.Entry
	for i := range 200 {
		entries = append(entries, s.Entry(fmt.Sprintf("e%03d", i), fmt.Sprintf("/%d", i), fmt.Sprint("v", i)))
	}
	s.Put(entries...)
	s.Sync(c)
	for i := range 3000 {
		if _, err := fetch(t.Context(), c, fmt.Sprint("v", i%200), fmt.Sprint("pod", i)); err != nil {
			t.Fatal(err)
		}
	}
	views, grantees, selectors, kept, unused, due, _ := c.Sizes()
	if views > cache.MaxIdleViews || grantees > 200 || selectors > 2*cache.MaxIdleViews || kept != 10 || unused != 10 || due > 10 {
		t.Errorf("left: views %d, grantees %d, selectors %d, kept %d, unused %d, due %d", views, grantees, selectors, kept, unused, due)
	}
}
