package ca_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/svid"
)

// TestS28_ExpiredEverythingHealsByRestart: the server was off until all it had
// is long expired.
func TestS28_ExpiredEverythingHealsByRestart(t *testing.T) {
	t.Parallel()
	for name, manager := range map[string]func(*world) keys.Manager{
		"disk":   func(w *world) keys.Manager { return w.diskKeys("a") },
		"memory": func(*world) keys.Manager { return memory() },
	} {
		for _, off := range []time.Duration{13 * time.Hour, 21 * time.Hour, 25 * time.Hour, 49 * time.Hour, 400 * 24 * time.Hour} {
			t.Run(fmt.Sprint(name, " ", off), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T, w *world) {
					for _, ran := range []time.Duration{0, 13 * time.Hour} { // with nothing, and something, prepared
						s := w.mustStart(w.config("a", manager(w)))
						s.mustIssue(0)
						time.Sleep(ran)
						s.stop()
						time.Sleep(off)
						s = w.mustStart(w.config("a", manager(w)))
						for range 30 {
							s.mustIssue(0)
							full(t, s)
							w.verify()
							checkBundle(t, w, map[string]*server{"a": s})
							time.Sleep(time.Hour)
						}
						s.stop()
					}
				})
			})
		}
	}
}

// TestS28_RunningServerHeals: the store was away until everything had expired,
// or the process did not run at all. Requests are refused meanwhile, as not
// ready, and served again without a restart.
func TestS28_RunningServerHeals(t *testing.T) {
	t.Parallel()
	t.Run("store away", func(t *testing.T) {
		t.Parallel()
		bubble(t, func(t *testing.T, w *world) {
			s := w.mustStart(w.config("a", w.diskKeys("a")))
			defer s.stop()
			s.faults.set(func(f *faults) { f.down = store.ErrUnavailable })
			served := 0
			for range 40 {
				switch err := s.issue(0); {
				case err == nil:
					served++
				case !errors.Is(err, ca.ErrNotReady):
					t.Fatal(err)
				}
				w.verify()
				time.Sleep(time.Hour)
			}
			if served != 24 {
				t.Errorf("%d hours were served, want 24: the life of the authority", served)
			}
			s.faults.set(func(f *faults) { f.down = nil })
			time.Sleep(time.Minute) // at most one pause between tries
			s.mustIssue(0)
			full(t, s)
			w.verify()
		})
	})
	t.Run("suspended", func(t *testing.T) {
		t.Parallel()
		bubble(t, func(t *testing.T, w *world) {
			a, err := ca.New(w.config("a", memory()))
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * 24 * time.Hour) // no timer of Run's fires
			if _, err := a.IssueX509(t.Context(), time.Now(), request(0)); !errors.Is(err, ca.ErrNotReady) {
				t.Fatalf("an expired authority: %v", err)
			}
			if _, err := a.IssueJWT(t.Context(), time.Now(), jwtRequest(0)); !errors.Is(err, ca.ErrNotReady) {
				t.Fatalf("an expired authority: %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := a.Run(ctx); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
			synctest.Wait()
			s := &server{Authority: a, w: w}
			s.mustIssue(0)
			w.verify()
			cancel()
			wg.Wait()
		})
	})
}

// TestS29_NoAuthorityWithoutLifeIsActivated: whenever an authority begins to
// sign, and as long as it does while the store is there, SVIDs of the default
// TTLs fit into its life, also for TTLs beyond SPIRE's threshold.
func TestS29_NoAuthorityWithoutLifeIsActivated(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{time.Hour, 4 * time.Hour, 6 * time.Hour, 8 * time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				config := func() ca.Config {
					cfg := w.config("a", w.diskKeys("a"))
					cfg.X509SVIDTTL, cfg.AgentTTL = ttl/2, ttl
					return cfg
				}
				agent := request(0)
				agent.Kind, agent.ID = svid.Agent, agentID
				check := func(s *server) {
					t.Helper()
					x, err := s.IssueX509(t.Context(), time.Now(), agent)
					if err != nil {
						t.Fatalf("%s: %v", time.Now(), err)
					}
					if x.Capped || x.NotAfter.Before(time.Now().Add(ttl-time.Second)) {
						t.Fatalf("%s: an agent's SVID ends %s", time.Now(), x.NotAfter)
					}
					full(t, s)
				}
				// The prepared one grows old while the store is away.
				s := w.mustStart(config())
				time.Sleep(13 * time.Hour)
				s.faults.set(func(f *faults) { f.down = store.ErrUnavailable })
				time.Sleep(23*time.Hour - ttl/2)
				s.faults.set(func(f *faults) { f.down = nil })
				time.Sleep(time.Minute)
				check(s)
				s.stop()
				// A server that was off finds an active one that is too old.
				for _, off := range []time.Duration{11 * time.Hour, 19 * time.Hour, 23 * time.Hour, 24*time.Hour - time.Minute} {
					time.Sleep(off)
					s = w.mustStart(config())
					check(s)
					s.stop()
				}
				s = w.mustStart(config())
				defer s.stop()
				for range 300 {
					check(s)
					time.Sleep(11 * time.Minute)
				}
			})
		})
	}
}

// TestS29_LongTTLsAreCapped: a longer TTL is cut short at the authority's end,
// with one warning, and never refused.
func TestS29_LongTTLsAreCapped(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		end := activeOf(s.X509().State()).NotAfter
		for range 5 {
			x, err := s.IssueX509(t.Context(), time.Now(), request(7*24*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			if !x.Capped || !x.NotAfter.Equal(end) {
				t.Errorf("ends %s, capped %t; the authority ends %s", x.NotAfter, x.Capped, end)
			}
			j, err := s.IssueJWT(t.Context(), time.Now(), jwtRequest(7*24*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			if !j.Capped || j.ExpiresAt.After(activeOf(s.JWT().State()).NotAfter) {
				t.Errorf("the token ends %s", j.ExpiresAt)
			}
		}
		if n := w.logs.count("TTL reaches beyond the authority's end"); n != 2 {
			t.Errorf("%d warnings, want one for each kind", n)
		}
	})
}

// TestSmallCATTL: a ca_ttl that cannot hold the default TTLs is warned of; the
// server works and what it issues is valid.
func TestSmallCATTL(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		cfg := w.config("a", w.diskKeys("a"))
		cfg.CATTL = 30 * time.Second
		s := w.mustStart(cfg)
		defer s.stop()
		if n := w.logs.count("TTL is long for the authority's"); n != 3 {
			t.Errorf("%d warnings, want three", n)
		}
		for range 300 {
			s.mustIssue(0)
			w.verify()
			time.Sleep(time.Second)
		}
		if n := len(w.bundle().X509Authorities); n > 6 {
			t.Errorf("%d roots are published", n)
		}
	})
	for name, change := range map[string]func(*ca.Config){
		"ca_ttl":                func(c *ca.Config) { c.CATTL = 9 * time.Second },
		"default_x509_svid_ttl": func(c *ca.Config) { c.X509SVIDTTL = time.Millisecond },
		"default_jwt_svid_ttl":  func(c *ca.Config) { c.JWTSVIDTTL = -time.Second },
		"agent_ttl":             func(c *ca.Config) { c.AgentTTL = -1 },
	} {
		cfg := newWorld(t).config("a", memory())
		change(&cfg)
		if _, err := ca.New(cfg); err == nil || len(err.Error()) < len(name) || err.Error()[:len(name)] != name {
			t.Errorf("%s: New returns %v", name, err)
		}
	}
}

// TestS30_NeverSignsUnpublished: someone removes the keys from the bundle. From
// the moment the server knows, it refuses; it publishes them again and goes on.
func TestS30_NeverSignsUnpublished(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		other := w.mustStart(w.config("b", w.diskKeys("b")))
		defer other.stop()
		remove := func() {
			t.Helper()
			_, err := w.reg.UpdateBundle(t.Context(), td, func(b *registry.Bundle) error {
				b.X509Authorities, b.JWTAuthorities = nil, nil
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 50 {
			s.mustIssue(0)
			remove()
			synctest.Wait() // the commit reaches everyone, who repair at once
			s.mustIssue(0)
			w.verifyNew()
			other.mustIssue(0)
			w.verifyNew()
			time.Sleep(time.Hour)
		}
		// The store is there for reading the log, but takes no writes.
		s.faults.set(func(f *faults) { f.down = store.ErrUnavailable })
		remove()
		synctest.Wait()
		if _, err := s.IssueX509(t.Context(), time.Now(), request(0)); !errors.Is(err, ca.ErrNotReady) {
			t.Errorf("X.509, with its key not in the bundle: %v", err)
		}
		if _, err := s.IssueJWT(t.Context(), time.Now(), jwtRequest(0)); !errors.Is(err, ca.ErrNotReady) {
			t.Errorf("JWT, with its key not in the bundle: %v", err)
		}
		time.Sleep(time.Hour)
		if s.issue(0) == nil {
			t.Error("an hour later it signs, and is not in the bundle")
		}
		s.faults.set(func(f *faults) { f.down = nil })
		time.Sleep(time.Minute)
		s.mustIssue(0)
		w.verifyNew()
	})
}

// TestS30_StaleBundlesAreIgnored: what the log brings late, or out of order,
// changes nothing.
func TestS30_StaleBundlesAreIgnored(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		synctest.Wait()
		stale := *w.bundle()
		stale.ModRevision--
		stale.X509Authorities, stale.JWTAuthorities = nil, nil
		s.ObserveBundle(&stale)
		s.mustIssue(0)
		w.verify()

		s.faults.set(func(f *faults) { f.down = store.ErrUnavailable })
		s.ObserveBundle(nil)
		if s.issue(0) == nil {
			t.Error("the bundle was removed, and it signs")
		}
		s.faults.set(func(f *faults) { f.down = nil })
		time.Sleep(time.Minute)
		s.mustIssue(0)
		w.verify()
	})
}

// TestS30_ActivationNeedsThePublishedKey: the prepared key is removed from the
// bundle. It does not sign before it was back.
func TestS30_ActivationNeedsThePublishedKey(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		time.Sleep(13 * time.Hour)
		for range 10 {
			_, err := w.reg.UpdateBundle(t.Context(), td, func(b *registry.Bundle) error {
				b.X509Authorities = b.X509Authorities[:1]
				b.JWTAuthorities = b.JWTAuthorities[:1]
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			s.mustIssue(0)
			w.verify()
		}
	})
}

// TestJWKSDoesNotPileUp: a server with keys in memory that restarts all the
// time publishes three JWT keys at most; at a restart an hour, no token is lost.
func TestJWKSDoesNotPileUp(t *testing.T) {
	t.Parallel()
	for _, every := range []time.Duration{time.Second, 10 * time.Second, time.Hour} {
		t.Run(every.String(), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				for range 60 {
					s := w.mustStart(w.config("a", memory()))
					s.mustIssue(0)
					if every == time.Hour {
						w.verify()
					} else {
						w.verifyNew()
					}
					if n := len(w.bundle().JWTAuthorities); n > 3 {
						t.Fatalf("%d JWT keys are published", n)
					}
					time.Sleep(every / 2)
					s.stop()
					time.Sleep(every / 2)
				}
				s := w.mustStart(w.config("a", memory()))
				defer s.stop()
				time.Sleep(time.Hour)
				if n := len(w.bundle().JWTAuthorities); n != 1 {
					t.Errorf("an hour later %d JWT keys are published", n)
				}
				time.Sleep(49 * time.Hour)
				if n := len(w.bundle().X509Authorities); n > 5 {
					t.Errorf("two days later %d roots are published", n)
				}
			})
		})
	}
}

// TestTokensSurviveOneRestart: with keys in memory, at any moment.
func TestTokensSurviveOneRestart(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{0, 3 * time.Hour, 23 * time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				s := w.mustStart(w.config("a", memory()))
				for range 50 {
					s.mustIssue(ttl)
					synctest.Wait() // the high-water mark is journaled at once
					s.stop()
					s = w.mustStart(w.config("a", memory()))
					w.verify()
					for range 30 {
						time.Sleep(time.Minute)
						w.verify()
					}
					w.verifyNew()
					time.Sleep(3 * time.Hour)
				}
				s.stop()
			})
		})
	}
}

// TestForeignLeftoversArePruned: authorities of a server that is gone leave the
// bundle after they expired, and not before; those of one that runs stay.
func TestForeignLeftoversArePruned(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		gone := w.mustStart(w.config("gone", memory()))
		gone.mustIssue(24 * time.Hour)
		gone.stop()
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		for range 60 {
			s.mustIssue(0)
			w.verify()
			time.Sleep(time.Hour)
		}
		b := w.bundle()
		if len(b.X509Authorities) != len(s.X509().State()) || len(b.JWTAuthorities) != len(s.JWT().State()) {
			t.Errorf("the bundle has %d and %d authorities, the server %d and %d",
				len(b.X509Authorities), len(b.JWTAuthorities), len(s.X509().State()), len(s.JWT().State()))
		}
	})
}
