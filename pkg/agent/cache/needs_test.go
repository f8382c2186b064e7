package cache_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/attest"
)

// TestNeeds: an entry needs what is missing when nothing else of that type keeps
// it from matching.
func TestNeeds(t *testing.T) {
	t.Parallel()
	late := func(s attest.Selector) bool { return s.Type == "test" && strings.HasPrefix(s.Value, "late:") }
	known := sel("a", "b", "late:known")
	for name, tc := range map[string]struct {
		entries [][]string
		want    bool
	}{
		"no entry":                  {},
		"all known":                 {entries: [][]string{{"a"}, {"a", "b"}}},
		"late alone":                {entries: [][]string{{"late:x"}}, want: true},
		"late beside known":         {entries: [][]string{{"a", "late:x", "b"}}, want: true},
		"late beside another":       {entries: [][]string{{"late:x", "z"}, {"a", "c", "late:x"}}},
		"late that is known":        {entries: [][]string{{"a", "late:known"}}},
		"late and late that is":     {entries: [][]string{{"late:known", "late:x"}}, want: true},
		"the second of two entries": {entries: [][]string{{"late:x", "z"}, {"late:y", "b"}}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := cachetest.New(t, "example.org")
			c := newCache(t, s)
			for i, values := range tc.entries {
				put(t, c, s, s.Entry(fmt.Sprintf("e%d", i), fmt.Sprintf("/w%d", i), values...))
			}
			if got := c.Needs("test", known, late); got != tc.want {
				t.Errorf("Needs is %v", got)
			}
			// What an attestor of another type does not know keeps no entry back.
			if got := c.Needs("other", nil, late); got {
				t.Error("an attestor is needed whose selectors no entry has")
			}
		})
	}
}

func BenchmarkNeeds(b *testing.B) {
	s := cachetest.New(b, "example.org")
	c := idleCache(b, s)
	for i := range 10_000 {
		put(b, c, s, s.Entry(fmt.Sprintf("e%d", i), fmt.Sprintf("/w%d", i), "a", fmt.Sprintf("n%d", i), "late:x"))
	}
	known := sel("a", "b")
	late := func(s attest.Selector) bool { return strings.HasPrefix(s.Value, "late:") }
	for b.Loop() {
		c.Needs("test", known, late)
	}
}
