package dataset

import (
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// Spec says which data. The zero value of a share is none of it.
type Spec struct {
	TrustDomain spiffeid.TrustDomain
	// Seed makes another set of the same shape.
	Seed uint64
	// Entries is how many there are, aliases not counted.
	Entries int
	// Aliases are, for each node alias, the selectors that a node needs to
	// have; one at least, unless all entries hang below agents.
	Aliases [][]*types.Selector
	// Agents may be parents themselves.
	Agents []spiffeid.ID
	// OwnShare of the entries have an agent as parent, NestedShare another
	// entry; the rest an alias. Both are between 0 and 1.
	OwnShare, NestedShare float64
	// Federates are the trust domains that FederatesShare of the entries
	// federate with, one to three of them each.
	Federates      []string
	FederatesShare float64
	// Even gives each alias the same number of entries. Otherwise the first
	// has the most, the second half of that, the third a third.
	Even bool
}

// Realistic sets the shares to those of a cluster's registrations: most below
// the cluster's alias, some below a node, a few below another workload, one in
// twenty federating.
func (s Spec) Realistic() Spec {
	s.NestedShare, s.FederatesShare = 0.02, 0.05
	if len(s.Agents) > 0 {
		s.OwnShare = 0.1
	}
	return s
}

// AliasEntries are the node aliases, parented on the server.
func (s Spec) AliasEntries() []*types.Entry {
	out := make([]*types.Entry, len(s.Aliases))
	for i, selectors := range s.Aliases {
		out[i] = &types.Entry{SpiffeId: s.aliasID(i), ParentId: s.id("/spire/server"), Selectors: selectors}
	}
	return out
}

// All yields the entries from the first on.
func (s Spec) All() iter.Seq[*types.Entry] { return s.Range(0, s.Entries) }

// Range yields the entries from to before end, whatever Entries says.
func (s Spec) Range(from, end int) iter.Seq[*types.Entry] {
	return func(yield func(*types.Entry) bool) {
		for i := from; i < end; i++ {
			if !yield(s.Entry(i)) {
				return
			}
		}
	}
}

// Entry is the entry i, counted from 0.
func (s Spec) Entry(i int) *types.Entry {
	r := rand.New(rand.NewPCG(s.Seed, uint64(i))) //nolint:gosec // data of a benchmark
	ns, sa := s.names(i)
	e := &types.Entry{
		SpiffeId:  s.id("/ns/" + ns + "/sa/" + sa),
		ParentId:  s.parent(r, i),
		Selectors: selectors(r, ns, sa),
	}
	if r.Float64() < s.FederatesShare && len(s.Federates) > 0 {
		from := r.IntN(len(s.Federates))
		for n := range min(1+r.IntN(3), len(s.Federates)) {
			e.FederatesWith = append(e.FederatesWith, s.Federates[(from+n)%len(s.Federates)])
		}
	}
	if r.IntN(10) == 0 {
		e.DnsNames = []string{sa + "." + ns + ".svc", sa + "." + ns + ".svc.cluster.local"}
	}
	if r.IntN(20) == 0 {
		e.Hint = "internal"
	}
	if r.IntN(5) == 0 {
		e.X509SvidTtl = 3600
	}
	return e
}

// perNamespace is how many entries share a namespace.
const perNamespace = 25

func (s Spec) names(i int) (ns, sa string) {
	return fmt.Sprintf("team-%d", i/perNamespace), fmt.Sprintf("workload-%x-%d", s.Seed, i)
}

// parent keeps the draw of the kind apart from that of the member, so that more
// agents do not change which entries are theirs.
func (s Spec) parent(r *rand.Rand, i int) *types.SPIFFEID {
	kind, member := r.Float64(), r.Float64()
	switch {
	case len(s.Agents) > 0 && (kind < s.OwnShare || len(s.Aliases) == 0):
		return s.id(s.Agents[int(member*float64(len(s.Agents)))].Path())
	case i > 0 && kind >= 1-s.NestedShare:
		// Below one that comes before, so that there is no cycle.
		ns, sa := s.names(int(member * float64(i)))
		return s.id("/ns/" + ns + "/sa/" + sa)
	case s.Even:
		return s.aliasID(i % len(s.Aliases))
	}
	return s.aliasID(harmonic(member, len(s.Aliases)))
}

// harmonic draws from 0 to n-1, i with a weight of 1/(i+1).
func harmonic(u float64, n int) int {
	var sum float64
	for i := range n {
		sum += 1 / float64(i+1)
	}
	for i := range n {
		if u -= 1 / float64(i+1) / sum; u < 0 {
			return i
		}
	}
	return n - 1
}

// selectors are two to five: namespace and service account, often labels or an
// image.
func selectors(r *rand.Rand, ns, sa string) []*types.Selector {
	out := []*types.Selector{{Type: "k8s", Value: "ns:" + ns}, {Type: "k8s", Value: "sa:" + sa}}
	more := []string{
		"pod-label:app:" + sa, "pod-label:tier:backend", "pod-label:tier:frontend",
		"container-name:main", "container-image:registry.test/" + ns + "/" + sa,
	}
	from := r.IntN(len(more))
	for n := range r.IntN(4) {
		out = append(out, &types.Selector{Type: "k8s", Value: more[(from+n)%len(more)]})
	}
	return out
}

func (s Spec) aliasID(i int) *types.SPIFFEID { return s.id(fmt.Sprintf("/cluster/%d", i)) }

func (s Spec) id(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: s.TrustDomain.Name(), Path: path}
}
