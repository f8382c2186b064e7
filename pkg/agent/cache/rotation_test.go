package cache_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
)

// watcher follows a subscription as a stream does and keeps what it was given
// last.
type watcher struct {
	sub  *cache.Subscription
	have *cache.Grant
	seen int
}

func watch(t *testing.T, c *cache.Cache, values ...string) *watcher {
	t.Helper()
	w := &watcher{sub: c.Subscribe(sel(values...))}
	t.Cleanup(w.sub.Close)
	w.have = await(t, w.sub)
	return w
}

// look takes what has come since.
func (w *watcher) look() *cache.Grant {
	select {
	case <-w.sub.Changed():
		w.have = w.sub.Latest()
		w.seen++
	default:
	}
	return w.have
}

// TestRotationOverDays: no SVID is ever held past its end and there is never a
// gap, over days of rotation, rotating authorities too; and no more is minted
// than it takes.
func TestRotationOverDays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const workloads, days = 3, 3
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		var watchers []*watcher
		for i := range workloads {
			s.Put(s.Entry(fmt.Sprint(i), fmt.Sprintf("/%d", i), fmt.Sprint("v", i)))
		}
		short := s.Entry("short", "/short", "short")
		short.X509SvidTtl = 600
		s.Put(short, s.Entry("warm", "/warm", "warm"))
		s.Sync(c)
		for i := range workloads {
			watchers = append(watchers, watch(t, c, fmt.Sprint("v", i)))
		}
		watchers = append(watchers, watch(t, c, "short"))
		for step := range days * 24 * 12 {
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			if step%(24*12) == 100 {
				s.RotateX509()
				d := s.Put()
				d.Bundles = append(d.Bundles, s.Bundle())
				if err := c.Apply(d); err != nil {
					t.Fatal(err)
				}
			}
			for _, w := range watchers {
				g := w.look()
				if len(g.Identities) != 1 {
					t.Fatalf("after %d steps there are %d identities", step, len(g.Identities))
				}
				verify(t, g) // at the time of now, too
			}
		}
		minted := 0
		for _, n := range s.Batches() {
			minted += n
		}
		// One per half-life: 30 minutes, and 5 for the short one.
		want := days*24*2*(workloads+1) + days*24*12
		if minted < want*95/100 || minted > want*115/100 {
			t.Errorf("%d SVIDs were minted in %d days, want about %d", minted, days, want)
		}
		if g, err := fetch(t.Context(), c, "warm"); err != nil || time.Until(g.Identities[0].NotAfter) < 20*time.Minute {
			t.Errorf("the SVID nobody uses is not fresh: %v", err)
		}
	})
}

// TestOutage: what is held is served to its end and not a second longer, and all
// of it comes back.
func TestOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"))
		s.Sync(c)
		w := watch(t, c, "a")
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		w.look()
		s.SetDown(errAway)
		end := w.have.Identities[0].NotAfter
		if got, want := c.Budget(time.Now()).Left, time.Until(end); got != want {
			t.Errorf("outage budget is %s, want %s", got, want)
		}
		for time.Now().Before(end.Add(-time.Second)) {
			time.Sleep(time.Second)
			g, err := fetch(t.Context(), c, "a")
			if err != nil {
				t.Fatalf("%s before its end: %v", time.Until(end), err)
			}
			verify(t, g)
		}
		time.Sleep(time.Until(end))
		_, err := fetch(t.Context(), c, "a")
		wantErr(t, err, cache.ErrUnavailable)
		if g := w.look(); len(g.Identities) != 0 || g.Matched != 1 {
			t.Errorf("the stream holds %d identities of %d entries after the end", len(g.Identities), g.Matched)
		}
		if got := c.Budget(time.Now()).Left; got != 0 {
			t.Errorf("outage budget is %s with nothing left", got)
		}
		time.Sleep(time.Hour)
		s.SetDown(nil)
		s.Sync(c) // the feed is back
		synctest.Wait()
		verify(t, w.look())
	})
}

// TestExpiredIsNotServedEvenWithoutTimers: a clock that was set, or a machine
// that slept, does not bring out what has expired.
func TestExpiredIsNotServedEvenWithoutTimers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		first := newCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"))
		s.Sync(first)
		await(t, first.Subscribe(sel("a")))
		c := idleCache(t, s) // no Run: no timers
		if err := c.Restore(first.Snapshot(true)); err != nil {
			t.Fatal(err)
		}
		sub := c.Subscribe(sel("a"))
		defer sub.Close()
		if n := len(sub.Latest().Identities); n != 1 {
			t.Fatalf("%d identities are restored", n)
		}
		time.Sleep(time.Hour)
		if n := len(sub.Latest().Identities); n != 0 {
			t.Errorf("%d identities are served past their end", n)
		}
	})
}

// TestEntryExpires: an entry ends on time, also when the agent is cut off.
func TestEntryExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		e := s.Entry("e1", "/one", "a")
		end := time.Now().Add(7 * time.Minute)
		e.ExpiresAt = end.Unix()
		s.Put(e, s.Entry("e2", "/two", "b"))
		s.Sync(c)
		w := watch(t, c, "a")
		s.SetDown(errAway)
		if _, err := c.FetchJWT(t.Context(), sel("b"), []string{"x"}, noID); err == nil {
			t.Error("a JWT-SVID from a server that is down")
		}
		time.Sleep(7*time.Minute - 2*time.Second)
		synctest.Wait()
		if g := w.look(); len(g.Identities) != 1 {
			t.Fatalf("%d identities before the end", len(g.Identities))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if g := w.look(); g.Matched != 0 {
			t.Error("the entry is still there")
		}
		_, err := c.FetchJWT(t.Context(), sel("a"), []string{"x"}, noID)
		wantErr(t, err, cache.ErrNoIdentity)
		// The server has not pruned it yet: the digest still counts it.
		if err := c.Synced(s.Synced()); err != nil {
			t.Error(err)
		}
		e.ExpiresAt = 0
		put(t, c, s, e)
		s.SetDown(nil)
		s.Sync(c)
		synctest.Wait()
		if g := w.look(); len(g.Identities) != 1 {
			t.Error("the entry that was given more time is not served")
		}
	})
}

// TestTaint: SVIDs of a tainted authority are replaced soon, at a bounded rate,
// and never missing meanwhile; and so those of a revoked one.
func TestTaint(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*cachetest.Server){
		"tainted": (*cachetest.Server).TaintX509,
		"revoked": (*cachetest.Server).RevokeX509,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testTaint(t, lose) })
		})
	}
}

func testTaint(t *testing.T, lose func(*cachetest.Server)) {
	const n = 300
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	for i := range n {
		s.Put(s.Entry(fmt.Sprint(i), fmt.Sprintf("/%d", i), fmt.Sprint("v", i)))
	}
	s.Sync(c)
	var watchers []*watcher
	old := map[*watcher][]byte{}
	for i := range 10 {
		w := watch(t, c, fmt.Sprint("v", i))
		watchers = append(watchers, w)
		old[w] = w.have.Identities[0].X509SVID
	}
	synctest.Wait()
	before := len(s.Batches())
	s.RotateX509()
	bundle := func() {
		d := s.Put()
		d.Bundles = append(d.Bundles, s.Bundle())
		if err := c.Apply(d); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
	}
	bundle()
	if got := len(s.Batches()); got != before {
		t.Errorf("%d calls because of a new authority, want none", got-before)
	}
	lose(s)
	bundle()
	start, minted := time.Now(), 0
	for time.Since(start) < 5*time.Second {
		for _, w := range watchers {
			if g := w.look(); len(g.Identities) != 1 {
				t.Fatal("a gap")
			}
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		now := 0
		for _, b := range s.Batches()[before:] {
			now += b
		}
		if now-minted > 40 {
			t.Errorf("%d SVIDs in 100 ms, want about 15", now-minted)
		}
		minted = now
	}
	for _, w := range watchers {
		g := w.look()
		if bytes.Equal(old[w], g.Identities[0].X509SVID) {
			t.Error("an SVID of the lost authority is still served")
		}
		verify(t, g)
	}
	if minted != n {
		t.Errorf("%d SVIDs were minted, want %d", minted, n)
	}
}

// TestServerSignsWithATaintedAuthority does not end in a storm.
func TestServerSignsWithATaintedAuthority(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"))
		d := s.Full()
		for _, a := range d.GetBundles()[0].GetBundle().GetX509Authorities() {
			a.Tainted = true
		}
		if err := c.Apply(d); err != nil {
			t.Fatal(err)
		}
		if err := c.Synced(s.Synced()); err != nil {
			t.Fatal(err)
		}
		w := watch(t, c, "a")
		time.Sleep(10 * time.Minute)
		if n := len(s.Batches()); n < 20 || n > 70 {
			t.Errorf("%d attempts in 10 minutes, want about 40", n)
		}
		if len(w.look().Identities) != 1 {
			t.Error("nothing is served")
		}
	})
}

// TestShortLives: SVIDs that live for two seconds are rotated without a gap.
func TestShortLives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		s.SetTTL(2*time.Second, time.Second)
		c := newCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"))
		s.Sync(c)
		w := watch(t, c, "a")
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			verify(t, w.look())
		}
		if n := len(s.Batches()); n > 80 {
			t.Errorf("%d SVIDs in a minute", n)
		}
	})
}

// TestWrongAnswers: what the server signs is taken only if it is what was asked
// for.
func TestWrongAnswers(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*cachetest.Server, []cache.X509Result){
		"another identity": func(s *cachetest.Server, r []cache.X509Result) { r[0], r[1] = r[1], r[0] },
		"empty chain":      func(_ *cachetest.Server, r []cache.X509Result) { r[0].Chain, r[1].Chain = nil, nil },
		"not a certificate": func(_ *cachetest.Server, r []cache.X509Result) {
			r[0].Chain[0], r[1].Chain[0] = []byte("x"), []byte("x")
		},
		"a status of each one": func(_ *cachetest.Server, r []cache.X509Result) { r[0].Err, r[1].Err = errAway, errAway },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := cachetest.New(t, "example.org")
			c := newCache(t, s, func(cfg *cache.Config) { cfg.Minter = &spoiled{Server: s, spoil: spoil} })
			s.Put(s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "a"))
			s.Sync(c)
			_, err := fetch(t.Context(), c, "a")
			wantErr(t, err, cache.ErrUnavailable)
		})
	}
}
