package dataset

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/testing/protocmp"
)

func spec(entries int) Spec {
	return Spec{
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Seed: 7, Entries: entries,
		Aliases:   [][]*types.Selector{{{Type: "x509pop", Value: "ca:fingerprint:a"}}, {{Type: "x509pop", Value: "ca:fingerprint:b"}}},
		Federates: []string{"one.test", "two.test", "three.test", "four.test"},
	}.Realistic()
}

func TestEntryIsTheSameWhateverCameBefore(t *testing.T) {
	t.Parallel()
	few, many := spec(10), spec(10_000)
	i := 0
	for e := range few.All() {
		if diff := cmp.Diff(e, many.Entry(i), protocmp.Transform()); diff != "" {
			t.Errorf("entry %d: %s", i, diff)
		}
		i++
	}
	if i != 10 {
		t.Errorf("%d entries, want 10", i)
	}
}

// TestShapeIsAsSaid holds the shares against a large set, within what chance
// does.
func TestShapeIsAsSaid(t *testing.T) {
	t.Parallel()
	const n = 20_000
	parents, federating, paths := map[string]int{}, 0, map[string]bool{}
	for e := range spec(n).All() {
		switch p := e.GetParentId().GetPath(); p {
		case "/cluster/0", "/cluster/1":
			parents[p]++
		default:
			parents["nested"]++
			if !paths[p] {
				t.Fatalf("%s is below %s, which does not come before it", e.GetSpiffeId().GetPath(), p)
			}
		}
		if len(e.GetFederatesWith()) > 0 {
			federating++
		}
		paths[e.GetSpiffeId().GetPath()] = true
	}
	if len(paths) != n {
		t.Errorf("%d SPIFFE IDs, want %d", len(paths), n)
	}
	for what, got := range map[string][2]int{
		"nested": {parents["nested"], n * 2 / 100}, "federating": {federating, n * 5 / 100},
		"of the first alias": {parents["/cluster/0"], n * 98 / 100 * 2 / 3},
	} {
		if got[0] < got[1]*8/10 || got[0] > got[1]*12/10 {
			t.Errorf("%d entries are %s, want about %d", got[0], what, got[1])
		}
	}
}
