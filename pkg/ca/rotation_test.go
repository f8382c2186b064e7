package ca_test

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/keys"
)

// TestDays runs two servers on one store through many rotations, one of
// them with keys in memory, both restarted at random. Each SVID verifies when it
// is issued and until it expires, against what is published then; no request
// fails; SVIDs of the default TTL are never cut short; the bundle stays small.
func TestDays(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		rng := rand.New(rand.NewPCG(1, 2))
		boot := map[string]func() *server{
			"disk":   func() *server { return w.mustStart(w.config("disk", w.diskKeys("disk"))) },
			"memory": func() *server { return w.mustStart(w.config("memory", memory())) },
		}
		running := map[string]*server{"disk": boot["disk"](), "memory": boot["memory"]()}
		ttls := []time.Duration{0, 0, 0, 0, 0, 0, 10 * time.Minute, 10 * time.Minute, 6 * time.Hour, 48 * time.Hour}
		for time.Since(start()) < days() {
			for _, s := range running {
				s.mustIssue(ttls[rng.IntN(len(ttls))])
				full(t, s)
			}
			w.verify()
			checkBundle(t, w, running)
			time.Sleep(time.Duration(rng.Int64N(int64(25 * time.Minute))))
			if rng.IntN(40) == 0 {
				name := []string{"disk", "memory"}[rng.IntN(2)]
				running[name].stop()
				time.Sleep(time.Duration(rng.Int64N(int64(2 * time.Hour))))
				running[name] = boot[name]()
			}
		}
		for _, s := range running {
			s.stop()
		}
		if n := w.logs.count("level=ERROR"); n > 0 {
			t.Errorf("%d errors were logged", n)
		}
		if n := w.logs.count("authority: activated"); n < int(days()/(24*time.Hour))*4-4 {
			t.Errorf("only %d activations: the test does not test rotation", n)
		}
	})
}

// start is when a bubble's clock begins.
func start() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

// days of the long test: more in a soak, fewer in a hurry.
func days() time.Duration {
	switch {
	case os.Getenv("SOAK") != "":
		return 60 * 24 * time.Hour
	case testing.Short():
		return 3 * 24 * time.Hour
	default:
		return 5 * 24 * time.Hour
	}
}

// full wants SVIDs of the default TTL to have it.
func full(t *testing.T, s *server) {
	t.Helper()
	x, err := s.IssueX509(t.Context(), time.Now(), request(0))
	if err != nil {
		t.Fatal(err)
	}
	j, err := s.IssueJWT(t.Context(), time.Now(), jwtRequest(0))
	if err != nil {
		t.Fatal(err)
	}
	if x.Capped || j.Capped {
		t.Fatalf("%s: default TTLs are cut short: X.509 %t, JWT %t", time.Now(), x.Capped, j.Capped)
	}
}

func checkBundle(t *testing.T, w *world, running map[string]*server) {
	t.Helper()
	b := w.bundle()
	if n := len(b.JWTAuthorities); n > 5*len(running) { // tokens of two days hold on to keys
		t.Fatalf("%s: %d JWT keys are published by %d servers", time.Now(), n, len(running))
	}
	for _, s := range running {
		for _, views := range [][]ca.View{s.X509().State(), s.JWT().State()} {
			st := states(views)
			if st["active"] != 1 || st["prepared"] > 1 {
				t.Fatalf("%s: authorities are %v", time.Now(), st)
			}
			if a := activeOf(views); !a.HasKey || !time.Now().Before(a.NotAfter) {
				t.Fatalf("%s: the active authority is %+v", time.Now(), a)
			}
		}
	}
	for _, a := range b.JWTAuthorities {
		if time.Now().After(a.ExpiresAt.Add(time.Hour)) {
			t.Fatalf("%s: JWT key %s expired %s", time.Now(), a.KeyID, a.ExpiresAt)
		}
	}
}

// TestSchedule wants each step at SPIRE's moment.
func TestSchedule(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		begin := time.Now()
		for _, c := range []struct {
			after  time.Duration
			states map[string]int // of X.509
			jwt    map[string]int
		}{
			{0, map[string]int{"active": 1}, map[string]int{"active": 1}},
			{12*time.Hour - time.Second, map[string]int{"active": 1}, map[string]int{"active": 1}},
			{12*time.Hour + time.Second, map[string]int{"active": 1, "prepared": 1}, map[string]int{"active": 1, "prepared": 1}},
			{20*time.Hour - time.Second, map[string]int{"active": 1, "prepared": 1}, map[string]int{"active": 1, "prepared": 1}},
			{20*time.Hour + time.Second, map[string]int{"active": 1, "old": 1}, map[string]int{"active": 1, "old": 1}},
			// The JWT key is forgotten when the last token it can have signed
			// has expired; the root a day after it expired itself.
			{20*time.Hour + 6*time.Minute + time.Second, map[string]int{"active": 1, "old": 1}, map[string]int{"active": 1}},
			{24*time.Hour + time.Second, map[string]int{"active": 1, "prepared": 1, "old": 1}, map[string]int{"active": 1, "prepared": 1}},
			{48*time.Hour - time.Second, map[string]int{"active": 1, "old": 3}, map[string]int{"active": 1}},
			{48*time.Hour + time.Second, map[string]int{"active": 1, "prepared": 1, "old": 2}, map[string]int{"active": 1, "prepared": 1}},
		} {
			time.Sleep(c.after - time.Since(begin))
			if diff := cmp.Diff(c.states, states(s.X509().State())); diff != "" {
				t.Errorf("after %s, X.509 (-want +got):\n%s", c.after, diff)
			}
			if diff := cmp.Diff(c.jwt, states(s.JWT().State())); diff != "" {
				t.Errorf("after %s, JWT (-want +got):\n%s", c.after, diff)
			}
			b := w.bundle()
			if len(b.X509Authorities) != len(s.X509().State()) || len(b.JWTAuthorities) != len(s.JWT().State()) {
				t.Errorf("after %s: the bundle has %d and %d authorities", c.after, len(b.X509Authorities), len(b.JWTAuthorities))
			}
		}
	})
}

// TestKeyTypes rotates every type of key.
func TestKeyTypes(t *testing.T) {
	t.Parallel()
	for _, kind := range []keys.Type{keys.ECP256, keys.ECP384, keys.RSA2048} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, w *world) {
				cfg := w.config("a", w.diskKeys("a"))
				cfg.CAKeyType = kind
				cfg.JWTIssuer = "https://oidc.example.org"
				s := w.mustStart(cfg)
				defer s.stop()
				for range 30 {
					s.mustIssue(0)
					w.verify()
					time.Sleep(time.Hour)
				}
			})
		})
	}
}

// TestKeysOfTheOldAreDeleted: a private key does not outlive its use.
func TestKeysOfTheOldAreDeleted(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		m := w.diskKeys("a")
		s := w.mustStart(w.config("a", m))
		defer s.stop()
		for _, c := range []struct {
			after time.Duration
			want  int
		}{{0, 2}, {13 * time.Hour, 4}, {21 * time.Hour, 2}} {
			time.Sleep(c.after - time.Since(start()))
			held, err := m.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(held) != c.want {
				t.Errorf("after %s there are %d keys, want %d", c.after, len(held), c.want)
			}
		}
	})
}
