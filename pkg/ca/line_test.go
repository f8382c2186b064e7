package ca_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
)

// lines are both kinds of authorities of a server.
func (s *server) lines() map[string]ca.Line {
	return map[string]ca.Line{"x509": s.X509(), "jwt": s.JWT()}
}

// eachLine runs the test for both kinds.
func eachLine(t *testing.T, fn func(*testing.T, *world, *server, ca.Line)) {
	t.Helper()
	for _, kind := range []string{"x509", "jwt"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				s := w.mustStart(w.config("a", w.diskKeys("a")))
				defer s.stop()
				fn(t, w, s, s.lines()[kind])
			})
		})
	}
}

func mustView(t *testing.T) func(ca.View, error) ca.View {
	t.Helper()
	return func(v ca.View, err error) ca.View {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// published says for each authority in the bundle, by ID, whether it is tainted.
func (w *world) published(l ca.Line) map[string]bool {
	b, found := w.bundle(), map[string]bool{}
	for _, v := range l.State() {
		if len(v.ID) == 40 {
			for _, a := range b.X509Authorities {
				if hex.EncodeToString(parse(w.t, a.DER).SubjectKeyId) == v.ID {
					found[v.ID] = a.Tainted
				}
			}
		}
		for _, a := range b.JWTAuthorities {
			if a.KeyID == v.ID {
				found[v.ID] = a.Tainted
			}
		}
	}
	return found
}

// TestByHand takes each step by hand, as an operator would, and restarts the
// server after each.
func TestByHand(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"x509", "jwt"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) { testByHand(t, w, kind) })
		})
	}
}

func testByHand(t *testing.T, w *world, kind string) {
	boot := func() *server { return w.mustStart(w.config("a", w.diskKeys("a"))) }
	s := boot()
	must := mustView(t)
	first := activeOf(s.lines()[kind].State())
	look := func(want []ca.View, published map[string]bool) {
		t.Helper()
		for range 2 {
			if diff := cmp.Diff(want, s.lines()[kind].State()); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(published, w.published(s.lines()[kind])); diff != "" {
				t.Fatalf("in the bundle (-want +got):\n%s", diff)
			}
			s.stop()
			s = boot()
		}
	}

	s.mustIssue(0)
	second := must(s.lines()[kind].Prepare(t.Context()))
	look([]ca.View{second, first}, map[string]bool{first.ID: false, second.ID: false})
	if second.State != "prepared" || !second.HasKey {
		t.Errorf("prepared %+v", second)
	}

	second = must(s.lines()[kind].Activate(t.Context(), second.ID))
	first.State, first.HasKey = "old", false
	look([]ca.View{second, first}, map[string]bool{first.ID: false, second.ID: false})
	s.mustIssue(0)
	w.verify()

	first.Tainted = true
	if diff := cmp.Diff(first, must(s.lines()[kind].Taint(t.Context(), first.ID))); diff != "" {
		t.Errorf("tainted (-want +got):\n%s", diff)
	}
	look([]ca.View{second, first}, map[string]bool{first.ID: true, second.ID: false})
	w.verify() // it goes on verifying, so that it can be replaced

	first.Revoked = true
	if diff := cmp.Diff(first, must(s.lines()[kind].Revoke(t.Context(), first.ID))); diff != "" {
		t.Errorf("revoked (-want +got):\n%s", diff)
	}
	look([]ca.View{second, first}, map[string]bool{second.ID: false})
	w.forget(first.ID)
	for range 60 {
		s.mustIssue(0)
		full(t, s)
		w.verify()
		time.Sleep(time.Hour)
	}
	if slices.ContainsFunc(s.lines()[kind].State(), func(v ca.View) bool { return v.ID == first.ID }) {
		t.Error("the revoked authority is never forgotten")
	}
	s.stop()
}

// forget drops what an authority signed, which was revoked.
func (w *world) forget(id string) {
	w.x509 = slices.DeleteFunc(w.x509, func(i issuedX509) bool { return hex.EncodeToString(i.leaf.AuthorityKeyId) == id })
	w.jwt = slices.DeleteFunc(w.jwt, func(i issuedJWT) bool { return keyID(w.t, i.token) == id })
}

func keyID(t testing.TB, token string) string {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Headers[0].KeyID
}

// TestByHandRefused breaks each rule, and finds that nothing has changed.
func TestByHandRefused(t *testing.T) {
	t.Parallel()
	eachLine(t, func(t *testing.T, w *world, s *server, l ca.Line) {
		must := mustView(t)
		gone := activeOf(l.State()).ID
		must(l.Activate(t.Context(), must(l.Prepare(t.Context())).ID))
		must(l.Taint(t.Context(), gone))
		must(l.Revoke(t.Context(), gone))
		tainted := activeOf(l.State()).ID
		must(l.Activate(t.Context(), must(l.Prepare(t.Context())).ID))
		must(l.Taint(t.Context(), tainted))
		plain := activeOf(l.State()).ID
		must(l.Activate(t.Context(), must(l.Prepare(t.Context())).ID))
		act, prep := activeOf(l.State()).ID, must(l.Prepare(t.Context())).ID
		before, bundle := l.State(), w.bundle()

		for name, c := range map[string]struct {
			do   func(context.Context, string) (ca.View, error)
			id   string
			want ca.Rule
			in   string
		}{
			"activate nobody":    {l.Activate, "", ca.KnownAuthority, ""},
			"activate unknown":   {l.Activate, "abcd", ca.KnownAuthority, ""},
			"activate active":    {l.Activate, act, ca.InState, "ACTIVE"},
			"activate old":       {l.Activate, plain, ca.InState, "OLD"},
			"activate tainted":   {l.Activate, tainted, ca.InState, "OLD"},
			"activate revoked":   {l.Activate, gone, ca.InState, "OLD"},
			"taint unknown":      {l.Taint, "abcd", ca.KnownAuthority, ""},
			"taint active":       {l.Taint, act, ca.InState, "ACTIVE"},
			"taint prepared":     {l.Taint, prep, ca.InState, "PREPARED"},
			"taint tainted":      {l.Taint, tainted, ca.NotYetTainted, "OLD"},
			"taint revoked":      {l.Taint, gone, ca.Published, "OLD"},
			"revoke unknown":     {l.Revoke, "abcd", ca.KnownAuthority, ""},
			"revoke active":      {l.Revoke, act, ca.InState, "ACTIVE"},
			"revoke prepared":    {l.Revoke, prep, ca.InState, "PREPARED"},
			"revoke not tainted": {l.Revoke, plain, ca.Tainted, "OLD"},
			"revoke revoked":     {l.Revoke, gone, ca.Published, "OLD"},
		} {
			_, err := c.do(t.Context(), c.id)
			refusal, ok := errors.AsType[*ca.Refusal](err)
			if !ok || refusal.Rule != c.want || refusal.State != c.in {
				t.Errorf("%s: %v (%+v)", name, err, refusal)
			}
		}
		if diff := cmp.Diff(before, l.State()); diff != "" {
			t.Errorf("authorities (-before +after):\n%s", diff)
		}
		if diff := cmp.Diff(bundle, w.bundle(), cmpopts.EquateComparable(spiffeid.TrustDomain{})); diff != "" {
			t.Errorf("bundle (-before +after):\n%s", diff)
		}
	})
}

// idleServer is a server whose schedule does not run, so that what is prepared can
// grow old.
func idleServer(t *testing.T, w *world) *server {
	t.Helper()
	f := newFaults(w.reg, w.diskKeys("a"))
	cfg := w.config("a", f.manager())
	cfg.Registry = f
	a, err := ca.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &server{Authority: a, w: w, faults: f}
}

// TestS29_ByHandNeedsLife: what has too little life left is not activated by
// hand either, to the second.
func TestS29_ByHandNeedsLife(t *testing.T) {
	t.Parallel()
	for kind, required := range map[string]time.Duration{"x509": ca.DefaultX509SVIDTTL, "jwt": ca.DefaultJWTSVIDTTL} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				s := idleServer(t, w)
				l := s.lines()[kind]
				prep := mustView(t)(l.Prepare(t.Context()))
				before := l.State()
				time.Sleep(time.Until(prep.NotAfter) - required + time.Second)
				_, err := l.Activate(t.Context(), prep.ID)
				if e, ok := errors.AsType[*ca.Refusal](err); !ok || e.Rule != ca.EnoughLife || e.State != "PREPARED" {
					t.Errorf("with %s left: %v", time.Until(prep.NotAfter), err)
				}
				if diff := cmp.Diff(before, l.State()); diff != "" {
					t.Errorf("(-before +after):\n%s", diff)
				}
			})
			bubble(t, func(t *testing.T, w *world) {
				l := idleServer(t, w).lines()[kind]
				prep := mustView(t)(l.Prepare(t.Context()))
				time.Sleep(time.Until(prep.NotAfter) - required)
				mustView(t)(l.Activate(t.Context(), prep.ID))
			})
		})
	}
}

// TestS30_ByHandNeedsThePublishedKey: what is not in the bundle is not activated
// by hand, whether this server has seen that or finds it in the commit; it is
// published again, and then it is.
func TestS30_ByHandNeedsThePublishedKey(t *testing.T) {
	t.Parallel()
	for _, observed := range []bool{false, true} {
		for _, kind := range []string{"x509", "jwt"} {
			t.Run(fmt.Sprintf("%s observed=%t", kind, observed), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T, w *world) {
					s := idleServer(t, w)
					l := s.lines()[kind]
					act, prep := activeOf(l.State()), mustView(t)(l.Prepare(t.Context()))
					b, err := w.reg.UpdateBundle(t.Context(), td, func(b *registry.Bundle) error {
						b.X509Authorities, b.JWTAuthorities = b.X509Authorities[:1], b.JWTAuthorities[:1]
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					if observed {
						s.ObserveBundle(b)
					}
					_, err = l.Activate(t.Context(), prep.ID)
					if e, ok := errors.AsType[*ca.Refusal](err); !ok || e.Rule != ca.Published {
						t.Errorf("activating what is not published: %v", err)
					}
					if got := activeOf(l.State()); got.ID != act.ID {
						t.Errorf("active is %s, want %s", got.ID, act.ID)
					}
					if err := s.Start(t.Context()); err != nil { // as Run would
						t.Fatal(err)
					}
					mustView(t)(l.Activate(t.Context(), prep.ID))
				})
			})
		}
	}
}

// TestByHandWithoutKey: what was prepared before the key manager lost its keys.
func TestByHandWithoutKey(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", memory()))
		prep := mustView(t)(s.X509().Prepare(t.Context()))
		s.stop()
		cfg := w.config("a", memory())
		a, err := ca.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		// Before Start there is nothing to act on but the journal.
		_, err = a.X509().Activate(t.Context(), prep.ID)
		if e, ok := errors.AsType[*ca.Refusal](err); !ok || e.Rule != ca.HasKey {
			t.Errorf("activating without a key: %v", err)
		}
	})
	bubble(t, func(t *testing.T, w *world) {
		a, err := ca.New(w.config("a", memory()))
		if err != nil {
			t.Fatal(err)
		}
		for name, l := range map[string]ca.Line{"x509": a.X509(), "jwt": a.JWT()} {
			if _, err := l.Prepare(t.Context()); !errors.Is(err, ca.ErrNotReady) {
				t.Errorf("%s: preparing before Start: %v", name, err)
			}
		}
	})
}

// TestByHandWithoutStore: an operator is told that the store is away, and the
// step can be taken when it is back.
func TestByHandWithoutStore(t *testing.T) {
	t.Parallel()
	eachLine(t, func(t *testing.T, w *world, s *server, l ca.Line) {
		s.faults.set(func(f *faults) { f.down = store.ErrUnavailable })
		if _, err := l.Prepare(t.Context()); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("preparing: %v", err)
		}
		s.mustIssue(0)
		s.faults.set(func(f *faults) { f.down, f.hang = nil, true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Prepare(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("preparing on a store that hangs: %v", err)
		}
		s.faults.set(func(f *faults) { f.hang = false })
		time.Sleep(2 * time.Minute) // the schedule's own attempt may hang
		mustView(t)(l.Activate(t.Context(), mustView(t)(l.Prepare(t.Context())).ID))
		s.mustIssue(0)
		w.verify()
	})
}

// TestRevokeOfAnother: a tainted JWT authority of another server on this store
// may be revoked here; its X.509 authorities, and what it uses, may not.
func TestRevokeOfAnother(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mustStart(w.config("a", memory())), w.mustStart(w.config("b", memory()))
		defer a.stop()
		defer b.stop()
		runs, err := w.store.Lock(t.Context(), registry.ServerLock("b"))
		if err != nil {
			t.Fatal(err)
		}
		defer runs.Unlock()
		must := mustView(t)
		for kind, want := range map[string]ca.Rule{"x509": ca.OwnerAway, "jwt": ca.Tainted} {
			theirs := b.lines()[kind]
			old := activeOf(theirs.State()).ID
			must(theirs.Activate(t.Context(), must(theirs.Prepare(t.Context())).ID))
			_, err := a.lines()[kind].Revoke(t.Context(), old)
			if e, ok := errors.AsType[*ca.Refusal](err); !ok || e.Rule != want {
				t.Errorf("%s, not tainted: %v", kind, err)
			}
			must(theirs.Taint(t.Context(), old))
			_, err = a.lines()[kind].Revoke(t.Context(), old)
			if e, ok := errors.AsType[*ca.Refusal](err); (kind == "x509") != (ok && e.Rule == want) {
				t.Errorf("%s, tainted: %v", kind, err)
			}
			if _, there := w.published(theirs)[old]; there != (kind == "x509") {
				t.Errorf("%s: %s is published: %t", kind, old, there)
			}
		}
	})
}

// TestManyByHand: an operator in a hurry ends nothing that is valid.
func TestManyByHand(t *testing.T) {
	t.Parallel()
	eachLine(t, func(t *testing.T, w *world, s *server, l ca.Line) {
		for range 12 {
			s.mustIssue(0)
			mustView(t)(l.Activate(t.Context(), mustView(t)(l.Prepare(t.Context())).ID))
			w.verify()
			time.Sleep(10 * time.Second)
		}
		if n := w.logs.count("before its time"); n > 0 {
			t.Error("an old key was dropped before its time")
		}
	})
}
