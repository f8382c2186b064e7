package ca_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/ca"
)

// TestDaysByHand mixes an operator's steps, at random, into the rotations
// and restarts of two servers. Whatever the operator does, requests are served,
// default TTLs are not cut short, and what was not revoked verifies (S28–S30).
func TestDaysByHand(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		rng := rand.New(rand.NewPCG(3, 4))
		boot := map[string]func() *server{
			"disk":   func() *server { return w.mustStart(w.config("disk", w.diskKeys("disk"))) },
			"memory": func() *server { return w.mustStart(w.config("memory", memory())) },
		}
		running := map[string]*server{"disk": boot["disk"](), "memory": boot["memory"]()}
		names := []string{"disk", "memory"}
		did := map[string]int{}
		for time.Since(start()) < days() {
			for _, name := range names {
				running[name].mustIssue([]time.Duration{0, 0, 10 * time.Minute, 6 * time.Hour}[rng.IntN(4)])
				full(t, running[name])
			}
			w.verify()
			checkStates(t, running)
			for range rng.IntN(6) {
				w.operate(t, running[names[rng.IntN(2)]], rng, did)
				w.verify()
			}
			time.Sleep(time.Duration(rng.Int64N(int64(40 * time.Minute))))
			if rng.IntN(40) == 0 {
				name := names[rng.IntN(2)]
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
		for _, op := range []string{"prepare", "activate", "taint", "revoke"} {
			if did[op] < 3 {
				t.Errorf("%d steps %q in all: the test does not test them (%v)", did[op], op, did)
			}
		}
	})
}

func checkStates(t *testing.T, running map[string]*server) {
	t.Helper()
	for name, s := range running {
		for kind, l := range s.lines() {
			st := states(l.State())
			if st["active"] != 1 || st["prepared"] > 1 || len(l.State()) > 64 {
				t.Fatalf("%s: %s authorities of %s are %v", time.Now(), kind, name, st)
			}
			a := activeOf(l.State())
			if !a.HasKey || a.Tainted || a.Revoked || !time.Now().Before(a.NotAfter) {
				t.Fatalf("%s: the active %s authority of %s is %+v", time.Now(), kind, name, a)
			}
		}
	}
}

// operate takes a random step on a random authority; refusals are as good.
func (w *world) operate(t *testing.T, s *server, rng *rand.Rand, did map[string]int) {
	t.Helper()
	l := []ca.Line{s.X509(), s.JWT()}[rng.IntN(2)]
	views := l.State()
	v := views[rng.IntN(len(views))]
	op := []string{"prepare", "activate", "taint", "revoke"}[rng.IntN(4)]
	var err error
	switch op {
	case "prepare":
		_, err = l.Prepare(t.Context())
	case "activate":
		_, err = l.Activate(t.Context(), v.ID)
	case "taint":
		_, err = l.Taint(t.Context(), v.ID)
	case "revoke":
		if _, err = l.Revoke(t.Context(), v.ID); err == nil {
			w.forget(v.ID)
		}
	}
	if err == nil {
		did[op]++
	} else if _, ok := errors.AsType[*ca.Refusal](err); !ok {
		t.Fatalf("%s: %v", op, err)
	}
	synctest.Wait()
}

// TestCrashByHand lets the process die in each operation of an operator's
// sequence. After a restart each step was taken or it was not, and the sequence
// can be gone on with.
func TestCrashByHand(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"x509", "jwt"} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s late=%t", kind, late), func(t *testing.T) {
				t.Parallel()
				steps := 0
				for at := 1; ; at++ {
					crashed := false
					bubble(t, func(t *testing.T, w *world) { crashed = crashByHand(t, w, kind, late, at) })
					if t.Failed() {
						t.Fatalf("crash in operation %d", at)
					}
					if !crashed {
						break
					}
					steps++
				}
				if steps < 5 { // key, prepare, activate, delete key, taint, revoke
					t.Errorf("only %d operations were crashed in", steps)
				}
			})
		}
	}
}

func crashByHand(t *testing.T, w *world, kind string, late bool, at int) (crashed bool) {
	boot := func(crash int) *server {
		f := newFaults(w.reg, w.diskKeys("a"))
		cfg := w.config("a", f.manager())
		cfg.Registry = f
		s, err := w.startWith(cfg, f)
		if err != nil {
			t.Fatal(err)
		}
		f.set(func(f *faults) { f.count, f.crashAt, f.late = 0, crash, late })
		return s
	}
	s := boot(at)
	s.mustIssue(0)
	first := activeOf(s.lines()[kind].State()).ID
	for range 12 { // more than the steps there are, for those to be taken again
		l := s.lines()[kind]
		next, id := nextByHand(l.State(), first)
		var err error
		switch next {
		case "prepare":
			_, err = l.Prepare(t.Context())
		case "activate":
			_, err = l.Activate(t.Context(), id)
		case "taint":
			_, err = l.Taint(t.Context(), first)
		case "revoke":
			_, err = l.Revoke(t.Context(), first)
		}
		if err != nil && !errors.Is(err, errCrashed) {
			t.Fatalf("%s: %v", next, err)
		}
		if s.faults.crashed() {
			crashed = true
			s.stop()
			s = boot(0)
		}
		s.mustIssue(0)
		if _, there := w.published(s.lines()[kind])[first]; !there {
			w.forget(first)
		}
		w.verify()
		checkStates(t, map[string]*server{"a": s})
	}
	if next, _ := nextByHand(s.lines()[kind].State(), first); next != "" {
		t.Errorf("the sequence was never gone through: %s is next", next)
	}
	s.stop()
	return crashed
}

// nextByHand is the step that follows from what is seen.
func nextByHand(views []ca.View, first string) (step, id string) {
	var prepared string
	for _, v := range views {
		if v.State == "prepared" {
			prepared = v.ID
		}
	}
	for _, v := range views {
		switch {
		case v.ID != first:
		case v.State == "active" && prepared == "":
			return "prepare", ""
		case v.State == "active":
			return "activate", prepared
		case !v.Tainted:
			return "taint", ""
		case !v.Revoked:
			return "revoke", ""
		}
	}
	return "", ""
}

// TestPreparedTooEarly: what an operator prepared long ago is made again when
// the schedule prepares, so that what is activated on time has been known for
// long and lives long.
func TestPreparedTooEarly(t *testing.T) {
	t.Parallel()
	eachLine(t, func(t *testing.T, _ *world, s *server, l ca.Line) {
		early := mustView(t)(l.Prepare(t.Context()))
		time.Sleep(12*time.Hour - time.Second)
		if l.State()[0].ID != early.ID {
			t.Error("the prepared authority was replaced before the schedule prepares")
		}
		time.Sleep(2 * time.Second)
		late := l.State()[0]
		if late.ID == early.ID || late.State != "prepared" {
			t.Errorf("at half-life: %+v", late)
		}
		time.Sleep(8 * time.Hour)
		if a := activeOf(l.State()); a.ID != late.ID {
			t.Errorf("active is %s, want %s", a.ID, late.ID)
		}
		if n := s.w.logs.count("authority: prepared"); n != 2*2+1 {
			t.Errorf("%d authorities were prepared", n)
		}
		// One that is young enough is kept.
		time.Sleep(3 * time.Hour)
		again := mustView(t)(l.Prepare(t.Context()))
		time.Sleep(11 * time.Hour)
		if a := activeOf(l.State()); a.ID != again.ID {
			t.Errorf("a young one was replaced, and %s is active", a.ID)
		}
	})
}

// TestScheduleGoesOnFromThere: after an activation by hand each later step is
// taken at its time, counted from the authority that is active now.
func TestScheduleGoesOnFromThere(t *testing.T) {
	t.Parallel()
	eachLine(t, func(t *testing.T, _ *world, s *server, l ca.Line) {
		time.Sleep(time.Hour)
		next := mustView(t)(l.Activate(t.Context(), mustView(t)(l.Prepare(t.Context())).ID))
		begin := next.IssuedAt
		for _, c := range []struct {
			after     time.Duration
			x509, jwt map[string]int
		}{
			{time.Second, map[string]int{"active": 1, "old": 1}, map[string]int{"active": 1, "old": 1}},
			// A JWT key without tokens beyond the default TTL, forgotten on time.
			{6*time.Minute + 2*time.Second, map[string]int{"active": 1, "old": 1}, map[string]int{"active": 1}},
			{12*time.Hour - time.Second, map[string]int{"active": 1, "old": 1}, map[string]int{"active": 1}},
			{12*time.Hour + 2*time.Second, map[string]int{"active": 1, "prepared": 1, "old": 1}, map[string]int{"active": 1, "prepared": 1}},
			{20*time.Hour - time.Second, map[string]int{"active": 1, "prepared": 1, "old": 1}, map[string]int{"active": 1, "prepared": 1}},
			{20*time.Hour + 2*time.Second, map[string]int{"active": 1, "old": 2}, map[string]int{"active": 1, "old": 1}},
		} {
			time.Sleep(time.Until(begin.Add(c.after)))
			want := c.jwt
			if len(next.ID) == 40 {
				want = c.x509
			}
			if diff := cmp.Diff(want, states(l.State())); diff != "" {
				t.Errorf("%s after the activation (-want +got):\n%s", c.after, diff)
			}
			if got := activeOf(l.State()); (got.ID == next.ID) != (c.after < 20*time.Hour) {
				t.Errorf("%s after the activation %s is active", c.after, got.ID)
			}
		}
		s.mustIssue(0)
	})
}

// TestShorterCATTL: authorities whose life an operator has shortened are not
// prepared again and again while the long-lived one goes on.
func TestShorterCATTL(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		cfg := w.config("a", w.diskKeys("a"))
		cfg.CATTL = 10 * 24 * time.Hour
		s := w.mustStart(cfg)
		time.Sleep(4 * 24 * time.Hour)
		s.stop()
		cfg.CATTL = 6 * time.Hour
		s = w.mustStart(cfg)
		defer s.stop()
		for time.Since(start()) < 9*24*time.Hour {
			s.mustIssue(0)
			w.verify()
			time.Sleep(time.Hour)
		}
		if n := w.logs.count("step not taken"); n > 0 {
			t.Errorf("%d steps failed", n)
		}
		// One of each kind at the start; from half of the long life on, one
		// whenever the prepared or the active one has grown too old.
		if n := w.logs.count("authority: prepared"); n > 2+2*35 {
			t.Errorf("%d authorities were prepared", n)
		}
	})
}
