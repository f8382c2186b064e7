package registry

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestPruneAgent(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	now := time.Now()
	for name, tc := range map[string]struct {
		expired time.Duration // how long ago
		banned  bool
		want    bool
	}{
		"long gone":        {2 * time.Hour, false, true},
		"not long enough":  {30 * time.Minute, false, false},
		"not expired":      {-time.Hour, false, false},
		"banned":           {2 * time.Hour, true, false},
		"unknown":          {0, false, false},
		"exactly too long": {time.Hour, false, false},
	} {
		a := newAgent(strings.ReplaceAll(name, " ", "-"))
		a.NotAfter = now.Add(-tc.expired).UTC().Truncate(time.Second)
		if name != "unknown" {
			if _, err := r.AttestAgent(t.Context(), a, "", nil); err != nil {
				t.Fatal(err)
			}
		}
		if tc.banned {
			if err := r.BanAgent(t.Context(), a.ID); err != nil {
				t.Fatal(err)
			}
		}
		got, err := r.PruneAgent(t.Context(), a.ID, now.Add(-time.Hour).Truncate(time.Second))
		if err != nil || got != tc.want {
			t.Errorf("%s: removed %v (%v), want %v", name, got, err, tc.want)
		}
		_, err = r.LoadAgent(t.Context(), a.ID)
		if gone := errors.Is(err, ErrNotFound); gone != (tc.want || name == "unknown") {
			t.Errorf("%s: afterwards %v", name, err)
		}
	}
}
