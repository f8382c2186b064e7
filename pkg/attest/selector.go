package attest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits on what one attestation, or one registration, may carry.
const (
	// MaxSelectorType bounds a selector's type, in bytes.
	MaxSelectorType = 255
	// MaxSelectorValue bounds a selector's value, in bytes.
	MaxSelectorValue = 4096
	// MaxSelectors bounds the selectors of one subject.
	MaxSelectors = 1024
)

// Selector is one fact about a node or a workload: which attestor says so
// (type) and what it says (value). SPIRE writes it "type:value".
type Selector struct {
	Type  string
	Value string
}

// ErrSelector is wrapped by every refusal of a malformed selector.
var ErrSelector = errors.New("malformed selector")

// ParseSelector splits "type:value" at the first colon.
func ParseSelector(s string) (Selector, error) {
	typ, value, ok := strings.Cut(s, ":")
	if !ok {
		return Selector{}, fmt.Errorf(`%w: %q has no colon; write type:value, such as unix:uid:1000`, ErrSelector, s)
	}
	sel := Selector{Type: typ, Value: value}
	return sel, sel.Validate()
}

// Validate refuses an empty type or value, a colon in the type, text that is
// not UTF-8, and lengths over the limits. Selector values can be secrets of the
// workload, so the error does not quote them.
func (s Selector) Validate() error {
	switch {
	case s.Type == "":
		return fmt.Errorf("%w: type is empty", ErrSelector)
	case strings.Contains(s.Type, ":"):
		return fmt.Errorf("%w: type contains a colon", ErrSelector)
	case s.Value == "":
		return fmt.Errorf("%w: value is empty (type %q)", ErrSelector, s.Type)
	case len(s.Type) > MaxSelectorType:
		return fmt.Errorf("%w: type is longer than %d bytes", ErrSelector, MaxSelectorType)
	case len(s.Value) > MaxSelectorValue:
		return fmt.Errorf("%w: value is longer than %d bytes (type %q)", ErrSelector, MaxSelectorValue, s.Type)
	case !utf8.ValidString(s.Type) || !utf8.ValidString(s.Value):
		return fmt.Errorf("%w: not UTF-8", ErrSelector)
	}
	return nil
}

// String is "type:value".
func (s Selector) String() string { return s.Type + ":" + s.Value }

// Compare orders selectors by type, then value.
func (s Selector) Compare(o Selector) int {
	return cmp.Or(cmp.Compare(s.Type, o.Type), cmp.Compare(s.Value, o.Value))
}

// Selectors is a set, kept sorted and without repeats by [NewSelectors].
type Selectors []Selector

// NewSelectors sorts and removes repeats. The input is not changed.
func NewSelectors(in ...Selector) Selectors {
	out := slices.Clone(in)
	slices.SortFunc(out, Selector.Compare)
	return slices.Compact(out)
}

// Contains says whether every selector of sub is in s. Both are sorted sets.
func (s Selectors) Contains(sub Selectors) bool {
	for _, want := range sub {
		i, ok := slices.BinarySearchFunc(s, want, Selector.Compare)
		if !ok {
			return false
		}
		s = s[i+1:]
	}
	return true
}

// Equal says whether both sets have the same members.
func (s Selectors) Equal(o Selectors) bool { return slices.Equal(s, o) }

// Validate validates each member and the size of the set. An empty set is
// valid here; entries demand at least one.
func (s Selectors) Validate() error {
	if len(s) > MaxSelectors {
		return fmt.Errorf("%w: %d selectors, at most %d are allowed", ErrSelector, len(s), MaxSelectors)
	}
	for _, sel := range s {
		if err := sel.Validate(); err != nil {
			return err
		}
	}
	return nil
}
