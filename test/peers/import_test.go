package peers

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
)

// TestImportFromSPIRE copies from a real SPIRE what has a value in every field,
// and compares what both servers answer; then back, what was made here.
func TestImportFromSPIRE(t *testing.T) {
	t.Parallel()
	theirs, mine := startSide(t, spire(t)), startSide(t, ours(t))
	theirs.federate()
	const n = 620 // more than a page
	for i := 0; i < n; i += 155 {
		req := &entryv1.BatchCreateEntryRequest{}
		for j := i; j < i+155; j++ {
			req.Entries = append(req.Entries, everyField(j))
		}
		resp, err := entryv1.NewEntryClient(theirs.local).BatchCreateEntry(bounded(t), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.GetResults() {
			if codes.Code(r.GetStatus().GetCode()) != codes.OK {
				t.Fatalf("creating an entry: %v", r.GetStatus())
			}
		}
	}
	imports(t, mine, theirs, "Verified: both servers are alike.")
	if diff := cmp.Diff(theirs.registered(), mine.registered(), protocmp.Transform(), protocmp.SortRepeatedFields(&types.Entry{}, "selectors", "federates_with"),
		protocmp.IgnoreFields(&types.Entry{}, "revision_number"), protocmp.IgnoreFields(&types.Bundle{}, "sequence_number")); diff != "" {
		t.Errorf("registered (-SPIRE's +ours):\n%s", diff)
	}
	imports(t, mine, theirs, "Nothing to do: both servers are alike.")

	late := everyField(n)
	late.Id = "late"
	mine.entry(late)
	imports(t, theirs, mine, "Verified: both servers are alike.")
	if got := theirs.registered()["entry late"]; got == nil {
		t.Error("SPIRE has not what was made here")
	}
}

// imports has our command line import from one server into the other.
func imports(t *testing.T, to, from *side, want string) {
	t.Helper()
	out := runCommand(t, ours(t).server(), "import", "-from", from.socket(), "-socketPath", to.socket())
	if out.code != 0 || !strings.Contains(out.stdout, want) {
		t.Fatalf("the import ended with %d:\n%s%s", out.code, out.stdout, out.stderr)
	}
}

func everyField(i int) *types.Entry {
	e := &types.Entry{
		Id: fmt.Sprintf("id-%d", i), SpiffeId: apiID(fmt.Sprintf("/w/%d", i)), ParentId: apiID("/node"),
		Selectors:   []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", i)}, {Type: "unix", Value: "gid:7"}},
		X509SvidTtl: int32(100 + i), JwtSvidTtl: int32(50 + i), FederatesWith: []string{"td1.test"},
		Admin: i%2 == 0, Downstream: i%3 == 0, StoreSvid: i%5 == 0, ExpiresAt: time.Now().Add(time.Hour).Unix(),
		DnsNames: []string{"z.example.org", fmt.Sprintf("w%d.example.org", i)}, Hint: fmt.Sprintf("hint %d", i%7),
		AdditionalAttributes: &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: i%2 == 1, JwtSvidIncludeJti: i%3 == 1},
	}
	if e.GetStoreSvid() { // SPIRE has no other attributes with it
		e.AdditionalAttributes = nil
	}
	return e
}

// federate gives a server the bundle of another trust domain, and two
// relationships.
func (s *side) federate() {
	s.t.Helper()
	b, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString("td1.test"), []byte(foreignDocument))
	if err != nil {
		s.t.Fatal(err)
	}
	bundle := &types.Bundle{TrustDomain: "td1.test", RefreshHint: 60, SequenceNumber: 7}
	for _, c := range b.X509Authorities() {
		bundle.X509Authorities = append(bundle.X509Authorities, &types.X509Certificate{Asn1: c.Raw})
		bundle.JwtAuthorities = append(bundle.JwtAuthorities, &types.JWTKey{KeyId: "key-1", PublicKey: c.RawSubjectPublicKeyInfo, ExpiresAt: time.Now().Add(time.Hour).Unix()})
	}
	set, err := bundlev1.NewBundleClient(s.local).BatchSetFederatedBundle(bounded(s.t), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{bundle}})
	if err != nil || codes.Code(set.GetResults()[0].GetStatus().GetCode()) != codes.OK {
		s.t.Fatalf("setting a bundle: %v, %v", set, err)
	}
	made, err := trustdomainv1.NewTrustDomainClient(s.local).BatchCreateFederationRelationship(bounded(s.t), &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{
			{TrustDomain: "td1.test", BundleEndpointUrl: "https://127.0.0.1:1/", BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{
				HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "spiffe://td1.test/endpoint"},
			}},
			{TrustDomain: "td2.test", BundleEndpointUrl: "https://127.0.0.1:2/b", BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}},
		},
	})
	if err != nil || len(made.GetResults()) != 2 || codes.Code(made.GetResults()[1].GetStatus().GetCode()) != codes.OK {
		s.t.Fatalf("creating relationships: %v, %v", made, err)
	}
}

// registered is what a server answers about entries, bundles and relationships.
func (s *side) registered() map[string]any {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	out := map[string]any{}
	for token := ""; ; {
		page, err := entryv1.NewEntryClient(s.local).ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: 200, PageToken: token})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range page.GetEntries() {
			out["entry "+e.GetId()] = e
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	bundles, err := bundlev1.NewBundleClient(s.local).ListFederatedBundles(ctx, &bundlev1.ListFederatedBundlesRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, b := range bundles.GetBundles() {
		out["bundle "+b.GetTrustDomain()] = b
	}
	relationships, err := trustdomainv1.NewTrustDomainClient(s.local).ListFederationRelationships(ctx, &trustdomainv1.ListFederationRelationshipsRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range relationships.GetFederationRelationships() {
		r.TrustDomainBundle = nil // compared as a bundle
		out["relationship "+r.GetTrustDomain()] = r
	}
	return out
}
