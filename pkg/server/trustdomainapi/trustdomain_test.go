package trustdomainapi

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/registry"
)

const noUpper = "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"

type want struct {
	code    codes.Code
	message string
}

var ok = want{codes.OK, "OK"}

func check(t *testing.T, name string, got []answer, wants ...want) {
	t.Helper()
	if len(got) != len(wants) {
		t.Fatalf("%s: want %d results, got %d", name, len(wants), len(got))
	}
	for i, w := range wants {
		if got[i].code != w.code || got[i].message != w.message || (got[i].code == codes.OK) != (got[i].relationship != nil) {
			t.Errorf("%s, item %d: want %v %q, got %v %q, %v", name, i, w.code, w.message, got[i].code, got[i].message, got[i].relationship)
		}
	}
}

// The statuses of items, one call after another over the same store.
func TestBatchStatuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	bad := func(format string, args ...any) want {
		return want{codes.InvalidArgument, "failed to convert federation relationship: " + fmt.Sprintf(format, args...)}
	}
	broken := wireBundle(t, "b.test", 1)
	broken.X509Authorities[0].Asn1 = []byte("x")
	for _, tc := range []struct {
		given *types.FederationRelationship
		want
	}{
		{web("", "https://x"), bad("trust_domain: trust domain is missing")},
		{web("BAD", "https://x"), bad("trust_domain: %s", noUpper)},
		{web("b.test", ""), bad("bundle_endpoint_url: is required")},
		{web("b.test", "http://x"), bad("bundle_endpoint_url: must use the https scheme")},
		{web("b.test", "https://"), bad("bundle_endpoint_url: must specify the host")},
		{web("b.test", "https://u:p@x"), bad("bundle_endpoint_url: must not contain user info")},
		{web("b.test", ":x"), bad("bundle_endpoint_url: is not a URL")},
		{spiffe("b.test", "https://x", "x"), bad("bundle_endpoint_profile: endpoint SPIFFE ID: scheme is missing or invalid")},
		{spiffe("b.test", "https://x", ""), bad("bundle_endpoint_profile: endpoint SPIFFE ID: cannot be empty")},
		{&types.FederationRelationship{TrustDomain: "b.test", BundleEndpointUrl: "https://x"}, bad("bundle_endpoint_profile: must be https_web or https_spiffe")},
		{with(web("b.test", "https://x"), wireBundle(t, "c.test", 1)), bad(`trust_domain_bundle: is of "c.test", the relationship is with "b.test"`)},
		{with(web("b.test", "https://x"), broken), bad("trust_domain_bundle: x509_authorities: unable to parse X.509 authority: x509: malformed certificate")},
	} {
		check(t, "create", f.create(t, nil, tc.given), tc.want)
		check(t, "update", f.update(t, nil, nil, tc.given), tc.want)
	}
	check(t, "create of nothing", f.create(t, nil, nil), bad("federation_relationship: is required"))
	check(t, "create of the own", f.create(t, nil, web("example.org", "https://x")),
		want{codes.InvalidArgument, "unable to create federation relationship for server trust domain"})

	exists, missing := want{codes.AlreadyExists, "federation relationship already exists"}, want{codes.NotFound, "federation relationship not found"}
	check(t, "update of none", f.update(t, nil, nil, web("one.test", "https://x"), web("example.org", "https://x")), missing, missing)
	check(t, "create", f.create(t, nil, web("one.test", "https://one"), web("one.test", "https://x"), spiffe("two.test", "https://two", "spiffe://two.test/e")), ok, exists, ok)
	check(t, "create again", f.create(t, nil, web("one.test", "https://x")), exists)
	check(t, "update", f.update(t, nil, nil, spiffe("one.test", "https://new", "spiffe://three.test")), ok)
	if diff := cmp.Diff(spiffe("one.test", "https://new", "spiffe://three.test"), f.get(t, "one.test"), protocmp.Transform()); diff != "" {
		t.Errorf("updated (-want +got):\n%s", diff)
	}
	check(t, "update", f.update(t, nil, nil, web("one.test", "https://new")), ok)
	if diff := cmp.Diff(web("one.test", "https://new"), f.get(t, "one.test"), protocmp.Transform()); diff != "" {
		t.Errorf("back to https_web (-want +got):\n%s", diff)
	}
	names := []string{"one.test", "one.test", "", "BAD", "example.org", "spiffe://two.test"}
	resp, err := f.BatchDeleteFederationRelationship(local(t), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: names})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range resp.Results {
		got = append(got, fmt.Sprintf("%s %v %s", r.TrustDomain, codes.Code(r.Status.Code), r.Status.Message))
	}
	wants := []string{
		"one.test OK OK", "one.test NotFound federation relationship not found", " InvalidArgument missing trust domain",
		"BAD InvalidArgument failed to parse trust domain: " + noUpper,
		"example.org NotFound federation relationship not found", "two.test OK OK",
	}
	if diff := cmp.Diff(wants, got); diff != "" {
		t.Errorf("delete (-want +got):\n%s", diff)
	}
}

func TestGetAndRefresh(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.create(t, nil, web("one.test", "https://one"))
	for name, tc := range map[string]struct {
		td           string
		away         bool
		get, refresh want
	}{
		"known": {td: "one.test", refresh: want{codes.Unimplemented, `this server does not fetch bundles from bundle endpoints yet: set the bundle of "one.test" by hand`}},
		"as an ID": {
			td: "spiffe://one.test", refresh: want{codes.Unimplemented, `this server does not fetch bundles from bundle endpoints yet: set the bundle of "one.test" by hand`},
		},
		"unknown": {
			td: "nobody.test", get: want{codes.NotFound, "federation relationship does not exist"},
			refresh: want{codes.NotFound, `no relationship with trust domain "nobody.test"`},
		},
		"own": {
			td: "example.org", get: want{codes.NotFound, "federation relationship does not exist"},
			refresh: want{codes.NotFound, `no relationship with trust domain "example.org"`},
		},
		"malformed": {
			td: "BAD", get: want{codes.InvalidArgument, "failed to parse trust domain: " + noUpper},
			refresh: want{codes.InvalidArgument, "failed to parse trust domain: " + noUpper},
		},
		"store away": {td: "one.test", away: true, get: want{codes.Unavailable, "store: unavailable"}, refresh: want{codes.Unavailable, "store: unavailable"}},
	} {
		f.Away.Store(tc.away)
		_, err := f.GetFederationRelationship(local(t), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: tc.td})
		if codeOf(err) != tc.get.code || err != nil && err.Error() != tc.get.message {
			t.Errorf("get, %s: want %v, got %v", name, tc.get, err)
		}
		_, err = f.RefreshBundle(local(t), &trustdomainv1.RefreshBundleRequest{TrustDomain: tc.td})
		if codeOf(err) != tc.refresh.code || err != nil && err.Error() != tc.refresh.message {
			t.Errorf("refresh, %s: want %v, got %v", name, tc.refresh, err)
		}
	}
}

// A bundle that comes with a relationship is the trust domain's bundle; one that
// is there is shown with the relationship, as it is now.
func TestBundleOfRelationship(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Slow.Store(true) // When a call returns, the index has what it did.
	one := spiffeid.RequireTrustDomainFromString("one.test")
	bundle := func() *types.Bundle {
		t.Helper()
		b, found := f.Index.Bundle(one)
		if !found {
			return nil
		}
		return b.ToWire()
	}
	expect := func(name string, want, got *types.Bundle) {
		t.Helper()
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	first, second := wireBundle(t, "one.test", 10), wireBundle(t, "one.test", 20)
	created := f.create(t, nil, with(web("one.test", "https://one"), first))[0]
	expect("created", first, created.relationship.GetTrustDomainBundle())
	expect("stored", first, bundle())
	updated := f.update(t, nil, nil, web("one.test", "https://new"))[0]
	expect("updated without a bundle", first, updated.relationship.GetTrustDomainBundle())
	updated = f.update(t, &types.FederationRelationshipMask{TrustDomainBundle: true}, nil, with(web("one.test", "https://x"), second))[0]
	expect("updated", second, updated.relationship.GetTrustDomainBundle())
	expect("stored", second, bundle())
	if url := f.get(t, "one.test").GetBundleEndpointUrl(); url != "https://new" {
		t.Errorf("the URL was not to be changed, it is %q", url)
	}
	f.update(t, &types.FederationRelationshipMask{BundleEndpointUrl: true}, nil, with(web("one.test", "https://newer"), first))
	expect("not asked to be updated", second, bundle())
	expect("shown", second, f.get(t, "one.test").GetTrustDomainBundle())

	resp, err := f.BatchDeleteFederationRelationship(local(t), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{"one.test"}})
	if err != nil || resp.Results[0].Status.Code != 0 {
		t.Fatal(resp, err)
	}
	expect("after the relationship is deleted", second, bundle())
	// What was there before is not part of what was created.
	created = f.create(t, nil, web("one.test", "https://one"))[0]
	expect("created over a bundle", nil, created.relationship.GetTrustDomainBundle())
	expect("shown", second, f.get(t, "one.test").GetTrustDomainBundle())
}

// S15: every call answers with what its output mask names, field by field, and an
// update sets what its input mask names, and nothing else.
func TestS15_RelationshipMask(t *testing.T) {
	t.Parallel()
	masks := make(map[protoreflect.Name]*types.FederationRelationshipMask)
	fields := (&types.FederationRelationshipMask{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		mask := &types.FederationRelationshipMask{}
		mask.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfBool(true))
		masks[fields.Get(i).Name()] = mask
	}
	// fieldsOf are the fields of the message that a field of the mask names: one,
	// or those of a oneof.
	fieldsOf := func(m *types.FederationRelationship, name protoreflect.Name) (out []protoreflect.FieldDescriptor) {
		all := m.ProtoReflect().Descriptor().Fields()
		for i := range all.Len() {
			f := all.Get(i)
			if f.Name() == name || f.ContainingOneof() != nil && f.ContainingOneof().Name() == name {
				out = append(out, f)
			}
		}
		return out
	}
	// put sets in to the masked field of from.
	put := func(to, from *types.FederationRelationship, name protoreflect.Name) {
		for _, f := range fieldsOf(from, name) {
			if from.ProtoReflect().Has(f) {
				to.ProtoReflect().Set(f, from.ProtoReflect().Get(f))
			}
		}
	}
	seen := 1 // the trust domain
	for name := range masks {
		seen += len(fieldsOf(&types.FederationRelationship{}, name))
	}
	if all := (&types.FederationRelationship{}).ProtoReflect().Descriptor().Fields().Len(); seen != all {
		t.Fatalf("the masks name %d of %d fields", seen, all)
	}
	for name, mask := range masks {
		f := newFixture(t)
		given := with(spiffe("one.test", "https://one", "spiffe://two.test/e"), wireBundle(t, "one.test", 10))
		want := &types.FederationRelationship{TrustDomain: "one.test"}
		put(want, given, name)
		created := f.create(t, mask, given)[0].relationship
		single, err := f.GetFederationRelationship(local(t), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: "one.test", OutputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		listed, err := f.ListFederationRelationships(local(t), &trustdomainv1.ListFederationRelationshipsRequest{OutputMask: mask})
		if err != nil || len(listed.FederationRelationships) != 1 {
			t.Fatal(listed, err)
		}
		updated := f.update(t, nil, mask, given)[0].relationship
		for call, got := range map[string]*types.FederationRelationship{
			"create": created, "get": single, "list": listed.FederationRelationships[0], "update": updated,
		} {
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("%s with %s (-want +got):\n%s", call, name, diff)
			}
		}
		changed := with(web("one.test", "https://new"), wireBundle(t, "one.test", 20))
		expect := proto.CloneOf(given)
		put(expect, changed, name)
		if diff := cmp.Diff(expect, f.update(t, mask, nil, changed)[0].relationship, protocmp.Transform()); diff != "" {
			t.Errorf("update of %s (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(expect, f.get(t, "one.test"), protocmp.Transform()); diff != "" {
			t.Errorf("after the update of %s (-want +got):\n%s", name, diff)
		}
		// What the mask leaves out is not read.
		partly := &types.FederationRelationship{TrustDomain: "one.test"}
		put(partly, given, name)
		if got := f.update(t, mask, &types.FederationRelationshipMask{}, partly)[0]; got.code != codes.OK {
			t.Errorf("update of %s alone: %+v", name, got)
		}
		f.update(t, nil, nil, given)
		if diff := cmp.Diff(given, f.get(t, "one.test"), protocmp.Transform()); diff != "" {
			t.Errorf("the whole again (-want +got):\n%s", diff)
		}
	}
}

func (f *fixture) pages(t testing.TB, size int32, mask *types.FederationRelationshipMask) (names []string, sizes []int) {
	t.Helper()
	for token := ""; ; {
		resp, err := f.ListFederationRelationships(local(t), &trustdomainv1.ListFederationRelationshipsRequest{
			PageSize: size, PageToken: token, OutputMask: mask,
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.FederationRelationships {
			names = append(names, r.TrustDomain)
		}
		sizes = append(sizes, len(resp.FederationRelationships))
		if n := proto.Size(resp); n > maxMessage+64<<10 {
			t.Errorf("a page of %d bytes", n)
		}
		if token = resp.NextPageToken; token == "" {
			return names, sizes
		}
	}
}

func TestListFederationRelationships(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if names, sizes := f.pages(t, 2, nil); len(names) != 0 || len(sizes) != 1 {
		t.Errorf("no relationship: got %v in pages of %v", names, sizes)
	}
	var want []string
	for i := range 7 {
		name := fmt.Sprintf("%c.test", 'b'+i)
		want = append(want, name)
		f.create(t, nil, web(name, "https://"+name))
	}
	for size, pages := range map[int32][]int{-1: {7}, 0: {7}, 1: {1, 1, 1, 1, 1, 1, 1}, 3: {3, 3, 1}, 6: {6, 1}, 7: {7}, 8: {7}, math.MaxInt32: {7}} {
		names, sizes := f.pages(t, size, nil)
		if diff := cmp.Diff(want, names) + cmp.Diff(pages, sizes); diff != "" {
			t.Errorf("page size %d (-want +got):\n%s", size, diff)
		}
	}
	for _, token := range []string{"BAD TOKEN", strings.Repeat("x", 300)} {
		if resp, err := f.ListFederationRelationships(local(t), &trustdomainv1.ListFederationRelationshipsRequest{PageToken: token}); codeOf(err) != codes.InvalidArgument {
			t.Errorf("token %.20q: %v, %v", token, resp, err)
		}
	}
	f.Away.Store(true)
	if _, err := f.ListFederationRelationships(local(t), &trustdomainv1.ListFederationRelationshipsRequest{}); codeOf(err) != codes.Unavailable {
		t.Errorf("store away: %v", err)
	}
}

// S12: no page outgrows what clients take, whatever size they ask for, and no
// memory is made for what is not there.
func TestS12_RelationshipPageIsCapped(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 20
	large := &registry.Bundle{X509Authorities: []registry.X509Authority{{DER: make([]byte, 400<<10)}}}
	var updates []registry.RelationshipUpdate
	for i := range n {
		updates = append(updates, registry.RelationshipUpdate{
			TrustDomain: spiffeid.RequireTrustDomainFromString(fmt.Sprintf("large%d.test", i)), Bundle: large,
			Change: func(*registry.FederationRelationship) (*registry.FederationRelationship, error) {
				return &registry.FederationRelationship{EndpointURL: "https://large"}, nil
			},
		})
	}
	for _, r := range f.Registry.UpdateRelationships(t.Context(), updates) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	for _, size := range []int32{0, math.MaxInt32} {
		if names, sizes := f.pages(t, size, nil); len(names) != n || len(sizes) != 3 {
			t.Errorf("page size %d: %d relationships in pages of %v", size, len(names), sizes)
		}
	}
	// Bundles that are not asked for take no room.
	urls := &types.FederationRelationshipMask{BundleEndpointUrl: true}
	if names, sizes := f.pages(t, 0, urls); len(names) != n || len(sizes) != 1 {
		t.Errorf("without bundles: %d relationships in pages of %v", len(names), sizes)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		f.pages(t, math.MaxInt32, urls)
	}
	runtime.ReadMemStats(&after)
	// Other tests run beside this one; 2³¹ of anything would still stand out.
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<30 {
		t.Errorf("ten lists allocated %d bytes", grown)
	}
}

func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	many := make([]*types.FederationRelationship, MaxBatch+1)
	_, err1 := f.BatchCreateFederationRelationship(local(t), &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: many})
	_, err2 := f.BatchUpdateFederationRelationship(local(t), &trustdomainv1.BatchUpdateFederationRelationshipRequest{FederationRelationships: many})
	_, err3 := f.BatchDeleteFederationRelationship(local(t), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: make([]string, MaxBatch+1)})
	for i, err := range []error{err1, err2, err3} {
		if codeOf(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "split") {
			t.Errorf("%d: got %v, want InvalidArgument that says what to do", i, err)
		}
	}
	if got := f.create(t, nil, many[:MaxBatch]...); len(got) != MaxBatch {
		t.Errorf("want %d results, got %d", MaxBatch, len(got))
	}
}

// Every change asked for is on record, with who asked.
func TestChangesAreAudited(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	given := with(web("one.test", "https://u-canary:p-canary@one"), wireBundle(t, "one.test", 1))
	f.create(t, nil, given)
	given.BundleEndpointUrl = "https://one"
	f.create(t, nil, given, given)
	f.update(t, nil, nil, given)
	if _, err := f.BatchDeleteFederationRelationship(local(t), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{"one.test"}}); err != nil {
		t.Fatal(err)
	}
	log := f.Log.String()
	for _, want := range []string{
		"action=federation.create", "action=federation.update", "action=federation.delete", "caller=uid:0", "caller_kind=local",
		"subject=one.test", "sets_bundle=true", "outcome=done", "outcome=refused", "err=\"federation relationship already exists\"",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	if intents, outcomes := strings.Count(log, "audit intent"), strings.Count(log, "audit outcome"); intents != 4 || outcomes != 5 {
		t.Errorf("want 4 intents and 5 outcomes (one item could not be read), got %d and %d:\n%s", intents, outcomes, log)
	}
	if strings.Contains(log, "canary") {
		t.Errorf("a password is in the log:\n%s", log)
	}
}
