package svid_test

import (
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/svid"
)

func TestAuthoritySchedule(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		life, prepare, activate time.Duration
	}{
		"a day":            {day, 12 * time.Hour, 20 * time.Hour},
		"an hour":          {time.Hour, 30 * time.Minute, 50 * time.Minute},
		"42 days":          {42 * day, 21 * day, 35 * day},
		"just over 42":     {42*day + 6*time.Hour, 21*day + 3*time.Hour, 35*day + 6*time.Hour},
		"60 days":          {60 * day, 30 * day, 53 * day},
		"a year":           {365 * day, 335 * day, 358 * day},
		"already no life":  {0, 0, 0},
		"6 s, no fraction": {6 * time.Second, 3 * time.Second, 5 * time.Second},
	} {
		if got := svid.PrepareAt(noon, noon.Add(c.life)).Sub(noon); got != c.prepare {
			t.Errorf("%s: prepared after %s, want %s", name, got, c.prepare)
		}
		if got := svid.ActivateAt(noon, noon.Add(c.life)).Sub(noon); got != c.activate {
			t.Errorf("%s: activated after %s, want %s", name, got, c.activate)
		}
	}
}

func TestRotateAt(t *testing.T) {
	t.Parallel()
	issued := noon
	for name, c := range map[string]struct {
		ttl    time.Duration
		spread float64
		want   time.Duration
	}{
		"earliest": {time.Hour, 0, 27 * time.Minute},
		"middle":   {time.Hour, 0.5, 30 * time.Minute},
		"latest":   {time.Hour, 1, 33 * time.Minute},
		"10 s":     {10 * time.Second, 0.5, 5 * time.Second},
	} {
		got := svid.RotateAt(issued.Add(-svid.Backdate), issued.Add(c.ttl), c.spread).Sub(issued).Round(time.Millisecond)
		if got != c.want {
			t.Errorf("%s: after %s, want %s", name, got, c.want)
		}
	}
	nb := noon
	if got := svid.RotateAt(nb, nb.Add(time.Second), 0.5); !got.Equal(nb) {
		t.Errorf("a certificate that is shorter than its backdating rotates at %s", got)
	}
}

func TestRotateFor(t *testing.T) {
	t.Parallel()
	issued := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		target, ttl, want time.Duration // from half of the life
		spread            float64
	}{
		{0, 48 * time.Hour, 24 * time.Hour, 0},
		{24 * time.Hour, 40 * time.Hour, 16 * time.Hour, 0},
		{24 * time.Hour, 40 * time.Hour, 15*time.Hour + 12*time.Minute, 0.5},
		{24 * time.Hour, 36 * time.Hour, 12 * time.Hour, 0},
		{24 * time.Hour, 36*time.Hour - 1, 18*time.Hour - 1, 0}, // lives too short
		{24 * time.Hour, 7 * 24 * time.Hour, 84 * time.Hour, 0}, // half of the life is sooner
		{24 * time.Hour, time.Hour, 30 * time.Minute, 0},
	} {
		got := svid.RotateFor(c.target, issued.Add(c.ttl/2), issued, issued.Add(c.ttl), c.spread).Sub(issued)
		if got.Round(time.Millisecond) != c.want.Round(time.Millisecond) {
			t.Errorf("%v of %v, spread %v: after %v, want %v", c.target, c.ttl, c.spread, got, c.want)
		}
	}
}
