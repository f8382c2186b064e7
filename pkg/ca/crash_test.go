package ca_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// TestCrashAtEveryStep lets the process die in each operation that has an
// effect, before it and after it, during two days of rotations, restarts it at
// once, and wants all that was issued to verify and the schedule to go on.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, durable := range []bool{true, false} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("durable=%t late=%t", durable, late), func(t *testing.T) {
				t.Parallel()
				steps := 0
				for at := 1; ; at++ {
					crashed := false
					bubble(t, func(t *testing.T, w *world) { crashed = crashAt(t, w, durable, late, at) })
					if t.Failed() {
						t.Fatalf("crash in operation %d", at)
					}
					if !crashed {
						break
					}
					steps++
				}
				if steps < 20 {
					t.Errorf("only %d operations were crashed in", steps)
				}
			})
		}
	}
}

// crashAt says whether there was an operation of that number.
func crashAt(t *testing.T, w *world, durable, late bool, at int) (crashed bool) {
	m := memory()
	config := func() (*faults, keys.Manager) {
		if durable {
			m = w.diskKeys("a")
		} else if crashed {
			m = memory()
		}
		f := newFaults(w.reg, m)
		return f, f.manager()
	}
	boot := func(crash int) (*server, error) {
		f, m := config()
		f.crashAt, f.late = crash, late
		cfg := w.config("a", m)
		cfg.Registry = f
		return w.startWith(cfg, f)
	}
	s, err := boot(at)
	if err != nil { // crashed in Start
		crashed = true
		if s, err = boot(0); err != nil {
			t.Fatalf("restart: %v", err)
		}
	}
	for tick := 0; time.Since(start()) < 50*time.Hour; tick++ {
		if s.faults.crashed() {
			crashed = true
			s.stop()
			w.forgetLong()
			if s, err = boot(0); err != nil {
				t.Fatalf("restart: %v", err)
			}
			s.mustIssue(0)
		}
		ttl := time.Duration(0)
		if tick%2 == 0 {
			ttl = 3 * time.Hour
		}
		s.mustIssue(ttl)
		full(t, s)
		w.verify()
		checkBundle(t, w, map[string]*server{"a": s})
		time.Sleep(173 * time.Minute)
	}
	s.stop()
	return crashed
}

// TestUncertainCommits: the store answers "unavailable" after it committed, for
// hours. The journal tells what happened; no authority is lost or doubled.
func TestUncertainCommits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		s.faults.set(func(f *faults) { f.downAfter = store.ErrUnavailable })
		for range 30 {
			s.mustIssue(0)
			w.verify()
			time.Sleep(time.Hour)
			s.faults.set(func(f *faults) {
				if time.Since(start()) > 22*time.Hour {
					f.downAfter = nil
				}
			})
		}
		if n := len(w.bundle().X509Authorities); n > 3 {
			t.Errorf("%d roots are published", n)
		}
		if n := len(w.bundle().JWTAuthorities); n > 2 {
			t.Errorf("%d JWT keys are published", n)
		}
	})
}

// TestDamagedJournal: records that cannot be read do not keep the server from
// starting, and are forgotten in time.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(*recordv1.JournaledAuthority){
		"certificate":   func(a *recordv1.JournaledAuthority) { a.Chain = [][]byte{{1, 2, 3}} },
		"no chain":      func(a *recordv1.JournaledAuthority) { a.Chain = nil },
		"public key":    func(a *recordv1.JournaledAuthority) { a.PublicKey = []byte{1} },
		"no state":      func(a *recordv1.JournaledAuthority) { a.State = 0 },
		"unknown state": func(a *recordv1.JournaledAuthority) { a.State = 99 },
		"no slot":       func(a *recordv1.JournaledAuthority) { a.Slot = "" },
		"other slot":    func(a *recordv1.JournaledAuthority) { a.Slot = "../x" },
		"no id":         func(a *recordv1.JournaledAuthority) { a.AuthorityId = "" },
		"from the future": func(a *recordv1.JournaledAuthority) {
			a.IssuedAt += 24 * 3600
			a.NotAfter += 24 * 3600
		},
		"no times": func(a *recordv1.JournaledAuthority) { a.IssuedAt, a.NotAfter = 0, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				s := w.mustStart(w.config("a", w.diskKeys("a")))
				s.mustIssue(0)
				s.stop()
				_, _, err := w.reg.UpdateAuthorities(t.Context(), "a", func(_ *registry.Bundle, j *recordv1.Journal) error {
					damage(j.GetX509()[0])
					damage(j.GetJwt()[0])
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				s = w.mustStart(w.config("a", w.diskKeys("a")))
				defer s.stop()
				for range 60 {
					s.mustIssue(0)
					w.verifyNew()
					checkBundle(t, w, map[string]*server{"a": s})
					time.Sleep(time.Hour)
				}
				if n := len(s.X509().State()); n > 5 {
					t.Errorf("%d authorities are in the journal", n)
				}
			})
		})
	}
}

// forgetLong forgets tokens of more than the default TTL. That there are any is
// journaled beside signing, not before it, so that a crash in that very commit
// can make them stop verifying early.
func (w *world) forgetLong() {
	w.jwt = slices.DeleteFunc(w.jwt, func(i issuedJWT) bool { return i.until.Sub(i.issued) > ca.DefaultJWTSVIDTTL })
}

// verifyNew is verify, but forgets what was issued before the last of each.
func (w *world) verifyNew() {
	w.t.Helper()
	w.x509, w.jwt = w.x509[max(0, len(w.x509)-1):], w.jwt[max(0, len(w.jwt)-1):]
	w.verify()
}

// TestSameServerIDTwice: the mistake is said in the log, and neither process
// ever signs with a key that is not published.
func TestSameServerIDTwice(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		a := w.mustStart(w.config("same", memory()))
		b := w.mustStart(w.config("same", memory()))
		defer a.stop()
		defer b.stop()
		issued := 0
		for range 60 {
			for _, s := range []*server{a, b} {
				if s.issue(0) == nil {
					issued++
				}
			}
			w.verifyAll(t)
			time.Sleep(31 * time.Minute)
			synctest.Wait()
		}
		if issued < 60 {
			t.Errorf("%d of 120 requests were served", issued)
		}
		if w.logs.count("is another server running with this server ID?") == 0 {
			t.Error("the mistake is not in the log")
		}
	})
}

// verifyAll wants what was issued now to verify now.
func (w *world) verifyAll(t *testing.T) {
	t.Helper()
	now := time.Now()
	var x []issuedX509
	for _, i := range w.x509 {
		if i.issued.Equal(now) {
			x = append(x, i)
		}
	}
	var j []issuedJWT
	for _, i := range w.jwt {
		if i.issued.Equal(now) {
			j = append(j, i)
		}
	}
	w.x509, w.jwt = x, j
	w.verify()
}
