package ca_test

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/ca"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// TestJWTSwitchedOff winds down what an earlier run had, and makes nothing new.
func TestJWTSwitchedOff(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		m := w.diskKeys("a")
		s := w.mustStart(w.config("a", m))
		mustView(t)(s.JWT().Prepare(t.Context()))
		s.mustIssue(0)
		s.stop()

		cfg := w.config("a", m)
		cfg.DisableJWT = true
		s = w.mustStart(cfg)
		if diff := cmp.Diff(map[string]int{"old": 1}, states(s.JWT().State())); diff != "" {
			t.Errorf("JWT authorities (-want +got):\n%s", diff)
		}
		w.verify() // what was signed goes on verifying
		if _, err := s.IssueJWT(t.Context(), time.Now(), jwtRequest(0)); !errors.Is(err, ca.ErrNotReady) {
			t.Errorf("issuing: %v", err)
		}
		held, err := m.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(held) != 1 {
			t.Errorf("%d keys are held, want that of the X.509 authority", len(held))
		}
		time.Sleep(20 * time.Minute)
		if n := len(w.bundle().JWTAuthorities); n != 0 || len(s.JWT().State()) != 0 {
			t.Errorf("%d JWT keys are published after the last token's end", n)
		}
		for range 50 {
			if _, err := s.IssueX509(t.Context(), time.Now(), request(0)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		s.stop()
		s = w.mustStart(w.config("a", m))
		defer s.stop()
		s.mustIssue(0)
		w.verify()
	})
}

// TestLostKeyIsSaid: a key manager that lost the active keys is a warning that
// says so, and nothing else is lost.
func TestLostKeyIsSaid(t *testing.T) {
	t.Parallel()
	const said = "private key of the active authority is gone"
	for name, c := range map[string]struct {
		lose  func(*testing.T, *world)
		lines int
	}{
		"kept":    {func(*testing.T, *world) {}, 0},
		"removed": {func(t *testing.T, w *world) { w.loseKeys(t, "a") }, 2},
		"replaced": {func(t *testing.T, w *world) {
			w.loseKeys(t, "a")
			other := newWorld(t)
			other.dir = w.dir
			other.mustStart(other.config("a", other.diskKeys("a"))).stop()
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				s := w.mustStart(w.config("a", w.diskKeys("a")))
				s.mustIssue(0)
				s.stop()
				c.lose(t, w)
				s = w.mustStart(w.config("a", w.diskKeys("a")))
				defer s.stop()
				s.mustIssue(0)
				w.verify()
				if n := w.logs.count(said); n != c.lines || w.logs.count("level=WARN") != c.lines {
					t.Errorf("said %d times, want %d", n, c.lines)
				}
			})
		})
	}
}

// TestJournalKeepsWhatOperatorsDid reads the record itself.
func TestJournalKeepsWhatOperatorsDid(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		must := mustView(t)
		old := activeOf(s.X509().State()).ID
		must(s.X509().Activate(t.Context(), must(s.X509().Prepare(t.Context())).ID))
		must(s.X509().Taint(t.Context(), old))
		find := func() *recordv1.JournaledAuthority {
			j, err := w.reg.LoadJournal(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range j.GetX509() {
				if a.GetAuthorityId() == old {
					return a
				}
			}
			t.Fatal("the journal has lost it")
			return nil
		}
		if a := find(); !a.GetTainted() || a.GetRevoked() {
			t.Errorf("tainted: %v", a)
		}
		must(s.X509().Revoke(t.Context(), old))
		if a := find(); !a.GetTainted() || !a.GetRevoked() {
			t.Errorf("revoked: %v", a)
		}
		if w.logs.count("unexpired_svids=0") != 2 {
			t.Error("the log does not say how many SVIDs are outstanding")
		}
	})
}

// TestRevokeCountsWhatIsOutstanding says in the log how many SVIDs it ends.
func TestRevokeCountsWhatIsOutstanding(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		must := mustView(t)
		for range 7 {
			s.mustIssue(0)
		}
		old := activeOf(s.X509().State()).ID
		must(s.X509().Activate(t.Context(), must(s.X509().Prepare(t.Context())).ID))
		s.mustIssue(0)
		synctest.Wait()
		must(s.X509().Taint(t.Context(), old))
		must(s.X509().Revoke(t.Context(), old))
		if n := w.logs.count("unexpired_svids=7"); n != 2 {
			t.Errorf("%d lines count the 7 SVIDs, want 2", n)
		}
	})
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// loseKeys removes the file in which a server's keys are.
func (w *world) loseKeys(t *testing.T, id string) {
	t.Helper()
	if err := os.Remove(filepath.Join(w.dir, id+".keys")); err != nil {
		t.Fatal(err)
	}
}

// TestRevokedMakeRoomFirst: where the bundle is bounded, a revoked authority,
// which nothing needs, goes before one that still verifies, and in silence.
func TestRevokedMakeRoomFirst(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		must := mustView(t)
		s := w.mustStart(w.config("a", memory()))
		l := s.JWT()
		s.mustIssue(0)
		kept := activeOf(l.State()).ID
		must(l.Activate(t.Context(), must(l.Prepare(t.Context())).ID))
		time.Sleep(time.Second)
		revoked := activeOf(l.State()).ID
		s.mustIssue(6 * time.Hour) // for which it would be kept
		must(l.Activate(t.Context(), must(l.Prepare(t.Context())).ID))
		must(l.Taint(t.Context(), revoked))
		must(l.Revoke(t.Context(), revoked))
		w.forget(revoked)
		s.stop()
		s = w.mustStart(w.config("a", memory())) // one more
		defer s.stop()
		w.verify()
		for _, v := range s.JWT().State() {
			if v.ID == revoked {
				t.Error("the revoked authority is kept")
			}
			if v.ID == kept {
				kept = ""
			}
		}
		if kept != "" {
			t.Error("the authority that still verifies is gone")
		}
		if n := w.logs.count("before its time"); n > 0 {
			t.Error("dropping what is revoked is said to be early")
		}
	})
}
