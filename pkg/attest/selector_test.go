package attest

import (
	"errors"
	"strings"
	"testing"
)

func TestS08_SelectorLimits(t *testing.T) {
	t.Parallel()
	of := func(typ, value int) Selector {
		return Selector{Type: strings.Repeat("t", typ), Value: strings.Repeat("v", value)}
	}
	for name, tc := range map[string]struct {
		sel Selector
		ok  bool
	}{
		"empty type":       {of(0, 1), false},
		"empty value":      {of(1, 0), false},
		"type limit - 1":   {of(MaxSelectorType-1, 1), true},
		"type limit":       {of(MaxSelectorType, 1), true},
		"type limit + 1":   {of(MaxSelectorType+1, 1), false},
		"value limit - 1":  {of(1, MaxSelectorValue-1), true},
		"value limit":      {of(1, MaxSelectorValue), true},
		"value limit + 1":  {of(1, MaxSelectorValue+1), false},
		"colon in type":    {Selector{"a:b", "c"}, false},
		"colon in value":   {Selector{"a", "b:c"}, true},
		"not UTF-8":        {Selector{"a", "\xff"}, false},
		"type is not UTF8": {Selector{"\xff", "a"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tc.sel.Validate()
			if (err == nil) != tc.ok || (err != nil && !errors.Is(err, ErrSelector)) {
				t.Errorf("Validate: %v, want ok=%v", err, tc.ok)
			}
		})
	}
}

func TestSelectorsContains(t *testing.T) {
	t.Parallel()
	set := func(s string) Selectors {
		var out []Selector
		for _, f := range strings.Fields(s) {
			out = append(out, Selector{Type: "t", Value: f})
		}
		return NewSelectors(out...)
	}
	for _, tc := range []struct {
		have, sub string
		want      bool
	}{
		{"a b c", "", true}, {"", "", true}, {"", "a", false}, {"a b c", "c a", true},
		{"a b c", "a b c", true}, {"a b c", "a d", false}, {"b", "a", false}, {"a a b", "a", true},
	} {
		if got := set(tc.have).Contains(set(tc.sub)); got != tc.want {
			t.Errorf("{%s}.Contains({%s}) = %v, want %v", tc.have, tc.sub, got, tc.want)
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"unix:uid:0", ":", "a:", ":b", "a", "\xff:\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sel, err := ParseSelector(s)
		if err == nil && sel.String() != s {
			t.Errorf("%q came back as %q", s, sel.String())
		}
	})
}
