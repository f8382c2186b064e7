package registry

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// setTo is a change to what is given, whatever there was.
func setTo(b *Bundle) func(*Bundle) (*Bundle, error) {
	return func(*Bundle) (*Bundle, error) { return b, nil }
}

func relateTo(f *FederationRelationship) func(*FederationRelationship) (*FederationRelationship, error) {
	return func(*FederationRelationship) (*FederationRelationship, error) { return f, nil }
}

func domain(n int) spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString(fmt.Sprintf("td%04d", n))
}

func TestUpdateBundles(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	errMine := errors.New("mine")
	with := func(seq uint64, keys ...string) *Bundle {
		b := &Bundle{SequenceNumber: seq}
		for _, k := range keys {
			b.JWTAuthorities = append(b.JWTAuthorities, JWTAuthority{KeyID: k, PKIX: []byte(k)})
		}
		return b
	}
	// Those of one trust domain follow one another, in order.
	res := r.UpdateBundles(t.Context(), []BundleUpdate{
		{other, setTo(with(7, "a"))},
		{domain(1), setTo(with(9))},
		{other, func(now *Bundle) (*Bundle, error) {
			now.SequenceNumber++
			now.JWTAuthorities = append(now.JWTAuthorities, JWTAuthority{KeyID: "b", PKIX: []byte("b")})
			return now, nil
		}},
		{other, func(now *Bundle) (*Bundle, error) {
			now.JWTAuthorities = nil
			return nil, errMine
		}},
		{other, setTo(with(1, "x", "x"))},
		{td, setTo(with(1))},
		{spiffeid.TrustDomain{}, setTo(with(1))},
	})
	for i, want := range []error{nil, nil, nil, errMine, ErrInvalid, ErrInvalid, ErrInvalid} {
		if !errors.Is(res[i].Err, want) {
			t.Errorf("%d: want %v, got %v", i, want, res[i].Err)
		}
	}
	got, err := r.LoadBundle(t.Context(), other)
	if diff := cmp.Diff(res[2].Bundle, got, comparing); err != nil || diff != "" || got.SequenceNumber != 8 || len(got.JWTAuthorities) != 2 {
		t.Errorf("in the end %+v, %v (-want +got):\n%s", got, err, diff)
	}
	// The same again writes nothing.
	before, _ := r.store.Head(t.Context())
	again := r.UpdateBundles(t.Context(), []BundleUpdate{{other, setTo(got)}})
	after, _ := r.store.Head(t.Context())
	if again[0].Err != nil || again[0].Bundle.ModRevision != got.ModRevision || before != after {
		t.Errorf("the same again: %+v, head from %d to %d", again[0], before, after)
	}
}

// More changes of one bundle than an Update holds: they follow one another.
func TestUpdateBundlesInTurn(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var updates []BundleUpdate
	for i := range 300 {
		updates = append(updates, BundleUpdate{domain(i % 2), func(now *Bundle) (*Bundle, error) {
			if have := now != nil; have && now.SequenceNumber != uint64(i-2) || have != (i > 1) {
				return nil, fmt.Errorf("%d comes after %+v", i, now)
			}
			return &Bundle{SequenceNumber: uint64(i)}, nil
		}})
	}
	for _, res := range r.UpdateBundles(t.Context(), updates) {
		if res.Err != nil {
			t.Fatal(res.Err)
		}
	}
}

// A batch that is larger than an Update, of bundles that are larger than was
// guessed.
func TestUpdateBundlesSplits(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	large := make([]byte, 300<<10)
	var updates []BundleUpdate
	for i := range 20 {
		updates = append(updates, BundleUpdate{domain(i), setTo(&Bundle{X509Authorities: []X509Authority{{DER: large}}})})
	}
	updates = append(updates, BundleUpdate{domain(20), setTo(&Bundle{X509Authorities: []X509Authority{{DER: make([]byte, maxRecord)}}})})
	for i, res := range r.UpdateBundles(t.Context(), updates) {
		if want := i == 20; errors.Is(res.Err, ErrInvalid) != want || !want && res.Err != nil {
			t.Errorf("%d: %v", i, res.Err)
		}
	}
}

func TestAppendBundle(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	one := &Bundle{
		X509Authorities: []X509Authority{{DER: []byte{1}}},
		JWTAuthorities:  []JWTAuthority{{KeyID: "j", PKIX: []byte{1}, ExpiresAt: timeOf(77)}},
		WITAuthorities:  []WITAuthority{{KeyID: "w", PKIX: []byte{1}}},
	}
	if _, err := r.AppendBundle(t.Context(), one); !errors.Is(err, ErrNotFound) {
		t.Fatalf("no bundle: got %v", err)
	}
	if _, err := r.UpdateBundle(t.Context(), td, func(b *Bundle) error {
		b.X509Authorities = []X509Authority{{DER: []byte{0}, Tainted: true}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := one.Clone()
	want.TrustDomain, want.SequenceNumber, want.ModRevision = td, 2, 3
	want.X509Authorities = []X509Authority{{DER: []byte{0}, Tainted: true}, {DER: []byte{1}}}
	// What is there stays as it is: not tainted, not healed, not prolonged.
	otherwise := &Bundle{
		X509Authorities: []X509Authority{{DER: []byte{0}}, {DER: []byte{1}, Tainted: true}},
		JWTAuthorities:  []JWTAuthority{{KeyID: "j", PKIX: []byte{1}, Tainted: true}},
		WITAuthorities:  []WITAuthority{{KeyID: "w", PKIX: []byte{1}, Tainted: true}},
	}
	for i, b := range []*Bundle{one, one, otherwise} {
		got, err := r.AppendBundle(t.Context(), b)
		if diff := cmp.Diff(want, got, comparing); err != nil || diff != "" {
			t.Errorf("%d: %v (-want +got):\n%s", i, err, diff)
		}
	}
	for name, add := range map[string]*Bundle{
		"JWT key ID of another JWT key": {JWTAuthorities: []JWTAuthority{{KeyID: "j", PKIX: []byte{2}}}},
		"JWT key ID of a WIT key":       {JWTAuthorities: []JWTAuthority{{KeyID: "w", PKIX: []byte{1}}}},
		"WIT key ID of another WIT key": {WITAuthorities: []WITAuthority{{KeyID: "w", PKIX: []byte{2}}}},
		"WIT key ID of a JWT key":       {WITAuthorities: []WITAuthority{{KeyID: "j", PKIX: []byte{1}}}},
	} {
		if got, err := r.AppendBundle(t.Context(), add); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func TestUpdateRelationships(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	web := &FederationRelationship{EndpointURL: "https://other.org/bundle"}
	errMine := errors.New("mine")
	missing := func(now *FederationRelationship) (*FederationRelationship, error) {
		if now == nil {
			return nil, ErrNotFound
		}
		return nil, nil
	}
	res := r.UpdateRelationships(t.Context(), []RelationshipUpdate{
		{TrustDomain: other, Change: relateTo(web), Bundle: &Bundle{SequenceNumber: 5}},
		{TrustDomain: other, Change: func(now *FederationRelationship) (*FederationRelationship, error) {
			next := *now
			next.EndpointURL += "/new"
			return &next, nil
		}},
		{TrustDomain: other, Change: func(now *FederationRelationship) (*FederationRelationship, error) { return now, errMine }},
		{TrustDomain: other, Change: relateTo(&FederationRelationship{EndpointURL: "http://x"}), Bundle: &Bundle{SequenceNumber: 6}},
		{TrustDomain: other, Change: relateTo(web), Bundle: &Bundle{RefreshHint: -1}},
		{TrustDomain: td, Change: relateTo(web)},
		{TrustDomain: td, Change: missing},
		{TrustDomain: domain(1), Change: missing},
	})
	for i, want := range []error{nil, nil, errMine, ErrInvalid, ErrInvalid, ErrInvalid, ErrNotFound, ErrNotFound} {
		if !errors.Is(res[i].Err, want) || want != nil && res[i].Relationship != nil {
			t.Errorf("%d: want %v, got %+v", i, want, res[i])
		}
	}
	if got := res[1]; got.Relationship.EndpointURL != "https://other.org/bundle/new" || got.Bundle.SequenceNumber != 5 || got.Relationship.TrustDomain != other {
		t.Errorf("updated: %+v", got)
	}
	if diff := cmp.Diff([]*FederationRelationship{res[1].Relationship}, relationshipsOf(t, r.store), comparing); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	before, _ := r.store.Head(t.Context())
	again := *res[1].Relationship
	again.ModRevision = 0
	same := r.UpdateRelationships(t.Context(), []RelationshipUpdate{{TrustDomain: other, Change: relateTo(&again), Bundle: res[1].Bundle}})[0]
	after, _ := r.store.Head(t.Context())
	if same.Err != nil || before != after || same.Relationship.ModRevision != res[1].Relationship.ModRevision || same.Bundle.ModRevision != res[0].Bundle.ModRevision {
		t.Errorf("the same again: %+v, head from %d to %d", same, before, after)
	}
	// The bundle outlives the relationship.
	if gone := r.UpdateRelationships(t.Context(), []RelationshipUpdate{{TrustDomain: other, Change: missing}}); gone[0].Err != nil {
		t.Error(gone[0].Err)
	}
	if left := relationshipsOf(t, r.store); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if b, err := r.LoadBundle(t.Context(), other); err != nil || b.SequenceNumber != 5 {
		t.Errorf("bundle: %+v, %v", b, err)
	}
}

// S12: no page size is more than a hint.
func TestS12_TrustPagesAreCapped(t *testing.T) {
	t.Parallel()
	ix := NewIndex()
	c := &Commit{StoreID: "s", Revision: 1, Reset: true}
	n := MaxPage + 5
	for i := n - 1; i >= 0; i-- {
		c.Bundles = append(c.Bundles, BundleChange{domain(i), &Bundle{TrustDomain: domain(i)}})
		c.Relationships = append(c.Relationships, RelationshipChange{domain(i), &FederationRelationship{TrustDomain: domain(i)}})
	}
	ix.Apply(c)
	for _, limit := range []int{math.MinInt, -1, 0, 1, 7, MaxPage, MaxPage + 1, math.MaxInt} {
		page := limit
		if limit <= 0 || limit > MaxPage {
			page = MaxPage
		}
		for name, list := range map[string]func(after string) (string, []string){
			"bundles": func(after string) (string, []string) {
				list, next := ix.ListBundles(after, limit)
				return next, ids(list, func(b *Bundle) string { return b.TrustDomain.Name() })
			},
			"relationships": func(after string) (string, []string) {
				list, next := ix.ListRelationships(after, limit)
				return next, ids(list, func(f *FederationRelationship) string { return f.TrustDomain.Name() })
			},
		} {
			var got []string
			for after, last := "", false; !last; {
				next, names := list(after)
				if len(names) > page || len(names) == 0 || next != "" && (len(names) != page || next != names[len(names)-1]) {
					t.Fatalf("%s after %q, limit %d: %d names, next %q", name, after, limit, len(names), next)
				}
				got = append(got, names...)
				after, last = next, next == ""
			}
			if len(got) != n || got[0] != "td0000" || got[n-1] != domain(n-1).Name() {
				t.Errorf("%s, limit %d: got %d names from %q on", name, limit, len(got), got[0])
			}
		}
	}
	if list, next := ix.ListBundles("zzz", 1); len(list) != 0 || next != "" {
		t.Errorf("after the last: got %v, %q", list, next)
	}
	if _, ok := ix.Bundle(other); ok || ix.CountBundles() != n {
		t.Errorf("want %d bundles, other.org's not among them", n)
	}
	ix.Apply(&Commit{StoreID: "s", Revision: 2, Bundles: []BundleChange{{domain(0), nil}}, Relationships: []RelationshipChange{{domain(0), nil}}})
	if _, ok := ix.Relationship(domain(0)); ok || ix.CountBundles() != n-1 || ix.Revision() != store.Revision(2) {
		t.Error("what was removed is still there")
	}
	ix.Apply(&Commit{StoreID: "s", Revision: 3, Reset: true})
	if related, _ := ix.ListRelationships("", 0); len(related) != 0 || ix.CountBundles() != 0 {
		t.Error("what a reset does not have is still there")
	}
}
