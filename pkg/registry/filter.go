package registry

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
)

// Match says how a candidate's set relates to the set of a filter. It has
// SPIRE's numbers.
type Match int

// Ways to match.
const (
	// MatchExact: the sets are equal.
	MatchExact Match = iota
	// MatchSubset: the candidate's set is not empty and inside the filter's.
	MatchSubset
	// MatchSuperset: the filter's set is inside the candidate's.
	MatchSuperset
	// MatchAny: the sets have a member in common.
	MatchAny
)

// EntryFilter selects entries that meet all of its fields; a zero field asks
// for nothing.
type EntryFilter struct {
	SPIFFEID spiffeid.ID
	ParentID spiffeid.ID
	// Selectors, a sorted set, and how to match them.
	Selectors     attest.Selectors
	SelectorMatch Match
	// FederatesWith and how to match it.
	FederatesWith      []spiffeid.TrustDomain
	FederatesWithMatch Match
	Hint               *string
	Downstream         *bool
}

// matcher holds entries against a filter that was normalized.
type matcher struct {
	filter *EntryFilter
	// scratch
	selectors attest.Selectors
	domains   []spiffeid.TrustDomain
}

func (m *matcher) matches(p *Packed) bool {
	f := m.filter
	switch {
	case !f.SPIFFEID.IsZero() && !sameID(f.SPIFFEID)(p.SPIFFEID()),
		!f.ParentID.IsZero() && !sameID(f.ParentID)(p.ParentID()):
		return false
	case f.Hint == nil && f.Downstream == nil && len(f.Selectors) == 0 && len(f.FederatesWith) == 0:
		return true
	}
	m.selectors, m.domains = m.selectors[:0], m.domains[:0]
	hint, downstream := "", false
	for x := range p.fields() {
		switch x.num {
		case wireSelectors:
			m.selectors = append(m.selectors, x.selector())
		case wireFederatesWith:
			m.domains = append(m.domains, domainFrom(x.text))
		case wireHint:
			hint = x.text
		case wireDownstream:
			downstream = true
		}
	}
	switch {
	case f.Hint != nil && hint != *f.Hint,
		f.Downstream != nil && downstream != *f.Downstream,
		len(f.Selectors) > 0 && !matchSets(f.SelectorMatch, m.selectors, f.Selectors, attest.Selector.Compare):
		return false
	}
	return len(f.FederatesWith) == 0 ||
		matchSets(f.FederatesWithMatch, m.domains, f.FederatesWith, spiffeid.TrustDomain.Compare)
}

// sameID says whether a trust domain's name and a path are those of a SPIFFE ID.
func sameID(id spiffeid.ID) func(trustDomain, path string) bool {
	return func(trustDomain, path string) bool {
		return path == id.Path() && trustDomain == id.TrustDomain().Name()
	}
}

// normalized makes sets of the filter's lists.
func (f EntryFilter) normalized() EntryFilter {
	f.Selectors = attest.NewSelectors(f.Selectors...)
	f.FederatesWith = normalizeDomains(f.FederatesWith)
	return f
}

// AgentFilter selects agents that meet all of its fields; a zero field asks for
// nothing.
type AgentFilter struct {
	AttestationType string
	Selectors       attest.Selectors
	SelectorMatch   Match
	Banned          *bool
	CanReattest     *bool
	ExpiresBefore   time.Time
}

func (f *AgentFilter) matches(a *Agent) bool {
	switch {
	case f.AttestationType != "" && a.AttestationType != f.AttestationType,
		f.Banned != nil && a.Banned != *f.Banned,
		f.CanReattest != nil && a.CanReattest != *f.CanReattest,
		!f.ExpiresBefore.IsZero() && !a.ExpiresAt().Before(f.ExpiresBefore):
		return false
	}
	return len(f.Selectors) == 0 || matchSets(f.SelectorMatch, a.Selectors, f.Selectors, attest.Selector.Compare)
}

// matchSets compares two sorted sets.
func matchSets[T any](m Match, have, want []T, compare func(a, b T) int) bool {
	common := 0
	for i, j := 0, 0; i < len(have) && j < len(want); {
		switch c := compare(have[i], want[j]); {
		case c < 0:
			i++
		case c > 0:
			j++
		default:
			common++
			i++
			j++
		}
	}
	switch m {
	case MatchExact:
		return common == len(have) && common == len(want)
	case MatchSubset:
		return common > 0 && common == len(have)
	case MatchSuperset:
		return common == len(want)
	case MatchAny:
		return common > 0
	}
	return false
}

// wantsAll says whether every candidate has each of the filter's members, so
// that those of one member are enough to look at.
func (m Match) wantsAll() bool { return m == MatchExact || m == MatchSuperset }

// page cuts a list that was read one beyond its limit.
func page[T any](list []T, limit int, id func(T) string) (out []T, next string) {
	if len(list) <= limit {
		return list, ""
	}
	list = list[:limit]
	return slices.Clip(list), id(list[limit-1])
}
