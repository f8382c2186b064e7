package cache_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// token fetches the one JWT-SVID of a workload.
func token(t testing.TB, c *cache.Cache, value string, audience ...string) string {
	t.Helper()
	svids, err := c.FetchJWT(t.Context(), sel(value), audience, noID)
	if err != nil || len(svids) != 1 {
		t.Fatalf("FetchJWT: %d tokens, %v", len(svids), err)
	}
	return svids[0].Token
}

func TestJWTsAreKeptUntilHalfLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"))
		s.Sync(c)
		first := token(t, c, "a", "x", "y")
		if _, err := jwtsvid.ParseAndValidate(first, c.Subscribe(sel("a")).Latest(), []string{"y"}); err != nil {
			t.Error(err)
		}
		if token(t, c, "a", "y", "x", "y") != first {
			t.Error("the same set of audiences gave another token")
		}
		if token(t, c, "a", "x") == first || token(t, c, "a", "xy") == first {
			t.Error("another set of audiences gave the same token")
		}
		time.Sleep(149 * time.Second)
		if token(t, c, "a", "x", "y") != first {
			t.Error("another token before half of its life")
		}
		time.Sleep(2 * time.Second)
		second := token(t, c, "a", "x", "y")
		if second == first {
			t.Error("the same token after half of its life")
		}
		// The server is away: the token is given out to its end, without a call
		// each time.
		time.Sleep(151 * time.Second)
		s.SetDown(errAway)
		for range 145 {
			if token(t, c, "a", "x", "y") != second {
				t.Fatal("another token from a server that is down")
			}
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Second)
		_, err := c.FetchJWT(t.Context(), sel("a"), []string{"x", "y"}, noID)
		wantErr(t, err, cache.ErrUnavailable)
		wantErr(t, err, errAway)
		s.SetDown(nil)
		token(t, c, "a", "x", "y")
	})
}

func TestJWTsOfAnUpdatedEntryAreDropped(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	e := s.Entry("e1", "/one", "a")
	s.Put(e)
	s.Sync(c)
	first := token(t, c, "a", "x")
	e.SpiffeId.Path = "/moved"
	put(t, c, s, e)
	svids, err := c.FetchJWT(t.Context(), sel("a"), []string{"x"}, noID)
	if err != nil {
		t.Fatal(err)
	}
	if svids[0].Token == first || svids[0].SPIFFEID.Path() != "/moved" {
		t.Errorf("the token of before the update, for %s", svids[0].SPIFFEID)
	}
	if err := c.Apply(s.Remove("e1")); err != nil {
		t.Fatal(err)
	}
	_, err = c.FetchJWT(t.Context(), sel("a"), []string{"x"}, noID)
	wantErr(t, err, cache.ErrNoIdentity)
	if _, _, _, _, _, _, jwts := c.Sizes(); jwts != 0 {
		t.Errorf("%d tokens are left", jwts)
	}
}

func TestJWTsOfALostAuthorityAreDropped(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	s.Put(s.Entry("e1", "/one", "a"))
	s.Sync(c)
	first := token(t, c, "a", "x")
	s.RotateJWT()
	s.Sync(c)
	if token(t, c, "a", "x") != first {
		t.Error("another token because of a new authority")
	}
	s.TaintJWT()
	s.Sync(c)
	if token(t, c, "a", "x") == first {
		t.Error("the token of a tainted authority")
	}
}

func TestJWTsWithJTIAreNotKept(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	e := s.Entry("e1", "/one", "a")
	e.AdditionalAttributes = &types.Entry_AdditionalAttributes{JwtSvidIncludeJti: true}
	s.Put(e)
	s.Sync(c)
	if first := token(t, c, "a", "x"); token(t, c, "a", "x") == first {
		t.Error("the same token twice")
	}
}

func TestJWTsForOneOfManyIdentities(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	for i := range 20 {
		s.Put(s.Entry(fmt.Sprintf("e%02d", i), fmt.Sprintf("/%02d", i), "a"))
	}
	s.Sync(c)
	all, err := c.FetchJWT(t.Context(), sel("a"), []string{"x"}, noID)
	if err != nil {
		t.Fatal(err)
	}
	for i, j := range all {
		if j.EntryID != fmt.Sprintf("e%02d", i) || j.SPIFFEID.Path() != fmt.Sprintf("/%02d", i) {
			t.Errorf("token %d is %s for %s", i, j.EntryID, j.SPIFFEID)
		}
		if _, err := jwtsvid.ParseInsecure(j.Token, []string{"x"}); err != nil {
			t.Error(err)
		}
	}
	one, err := c.FetchJWT(t.Context(), sel("a"), []string{"x"}, all[7].SPIFFEID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all[7].Token, one[0].Token); diff != "" || len(one) != 1 {
		t.Errorf("%d tokens (-want +got):\n%s", len(one), diff)
	}
	_, err = c.FetchJWT(t.Context(), sel("a"), []string{"x"}, spiffeid.RequireFromString("spiffe://example.org/other"))
	wantErr(t, err, cache.ErrNoIdentity)
}

// TestJWTCallsAreShared: callers that ask for the same wait for one call, and one
// who goes away does not take it from the others.
func TestJWTCallsAreShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := cachetest.New(t, "example.org")
		c := newCache(t, s)
		s.Put(s.Entry("e1", "/one", "a"))
		s.Sync(c)
		unblock := s.Block()
		leader, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.FetchJWT(leader, sel("a"), []string{"x"}, noID); !errors.Is(err, context.Canceled) {
				t.Errorf("the one who went away: %v", err)
			}
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() {
				if _, err := c.FetchJWT(t.Context(), sel("a"), []string{"x"}, noID); err != nil {
					t.Errorf("one who waits: %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		unblock()
		wg.Wait()
		if n := s.JWTs(); n != 1 {
			t.Errorf("%d calls got through, want 1", n)
		}
	})
}

func TestJWTsAreBounded(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s, func(cfg *cache.Config) { cfg.MaxJWTSVIDs = 10 })
	s.Put(s.Entry("e1", "/one", "a"))
	s.Sync(c)
	for i := range 100 {
		token(t, c, "a", fmt.Sprint(i))
	}
	if _, _, _, _, _, _, jwts := c.Sizes(); jwts != 10 {
		t.Errorf("%d tokens are kept, want 10", jwts)
	}
	before := s.JWTs()
	for i := 90; i < 100; i++ {
		token(t, c, "a", fmt.Sprint(i))
	}
	if s.JWTs() != before {
		t.Error("not the ones used last were kept")
	}
}

func TestWrongTokens(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(string) string{
		"empty":            func(string) string { return "" },
		"two parts":        func(s string) string { return s[:strings.LastIndex(s, ".")] },
		"not base64":       func(s string) string { return "*" + s },
		"not JSON":         func(string) string { return "AAAA.AAAA.AAAA" },
		"another identity": func(s string) string { p := strings.Split(s, "."); return p[0] + ".eyJzdWIiOiJ4In0." + p[2] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := cachetest.New(t, "example.org")
			c := newCache(t, s, func(cfg *cache.Config) { cfg.Minter = &spoiled{Server: s, spoilJWT: spoil} })
			s.Put(s.Entry("e1", "/one", "a"))
			s.Sync(c)
			_, err := c.FetchJWT(t.Context(), sel("a"), []string{"x"}, noID)
			wantErr(t, err, cache.ErrUnavailable)
		})
	}
}

// refusing is a server that mints no JWT-SVID for some entries.
type refusing struct {
	*cachetest.Server
	entries map[string]bool
}

func (r *refusing) MintJWT(ctx context.Context, entryID string, audience []string) (string, time.Time, time.Time, error) {
	if r.entries[entryID] {
		return "", time.Time{}, time.Time{}, errAway
	}
	return r.Server.MintJWT(ctx, entryID, audience)
}

// TestJWTsThatCannotBeHadAreLeftOut: but the first, which is the default, is
// never replaced by another.
func TestJWTsThatCannotBeHadAreLeftOut(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		refused []string
		id      spiffeid.ID
		want    string
		err     error
	}{
		{"none", nil, noID, "/one /two /three", nil},
		{"another", []string{"e2"}, noID, "/one /three", nil},
		{"all others", []string{"e2", "e3"}, noID, "/one", nil},
		{"the default", []string{"e1"}, noID, "", cache.ErrUnavailable},
		{"the one asked for", []string{"e2"}, spiffeid.RequireFromString("spiffe://example.org/two"), "", cache.ErrUnavailable},
		{"not the one asked for", []string{"e1"}, spiffeid.RequireFromString("spiffe://example.org/two"), "/two", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := cachetest.New(t, "example.org")
			r := &refusing{Server: s, entries: map[string]bool{}}
			for _, id := range test.refused {
				r.entries[id] = true
			}
			c := newCache(t, s, func(cfg *cache.Config) { cfg.Minter = r })
			s.Put(s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "a"), s.Entry("e3", "/three", "a"))
			s.Sync(c)
			svids, err := c.FetchJWT(t.Context(), sel("a"), []string{"x"}, test.id)
			if !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			var got []string
			for _, svid := range svids {
				got = append(got, svid.SPIFFEID.Path())
			}
			if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestJWTsOfEntriesThatHaveJustGone: an entry that goes while its token is made
// is no identity any more, also if it was the first.
func TestJWTsOfEntriesThatHaveJustGone(t *testing.T) {
	t.Parallel()
	c := newCache(t, cachetest.New(t, "example.org"))
	gone, away := cache.ErrNoIdentity, fmt.Errorf("%w: away", cache.ErrUnavailable)
	tests := []struct {
		name string
		errs []error
		want string
		err  error
	}{
		{"the first", []error{gone, nil, nil}, "bc", nil},
		{"another", []error{nil, gone, nil}, "ac", nil},
		{"all", []error{gone, gone, gone}, "", cache.ErrNoIdentity},
		{"the first, and the next cannot be had", []error{gone, away, nil}, "", cache.ErrUnavailable},
		{"the caller", []error{nil, context.Canceled, nil}, "", context.Canceled},
	}
	for _, test := range tests {
		svids, err := c.Available([]cache.JWTSVID{{Token: "a"}, {Token: "b"}, {Token: "c"}}, test.errs)
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		}
		var got string
		for _, svid := range svids {
			got += svid.Token
		}
		if got != test.want {
			t.Errorf("%s: tokens %q, want %q", test.name, got, test.want)
		}
	}
}
