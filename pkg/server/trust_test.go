package server

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/svid"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// feedReader is an agent's stream, and what it was told of bundles and entries.
type feedReader struct {
	stream  feedv1.Feed_WatchClient
	bundles map[string]*types.Bundle
	entries map[string]*types.Entry
}

func (r *running) watch(t *testing.T, a *testAgent) *feedReader {
	t.Helper()
	stream, err := feedv1.NewFeedClient(a.conn).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{}}}); err != nil {
		t.Fatal(err)
	}
	f := &feedReader{stream: stream, bundles: map[string]*types.Bundle{}, entries: map[string]*types.Entry{}}
	synced := false
	for !synced {
		synced = f.step(t)
	}
	return f
}

// step takes one message and says whether it was Synced.
func (f *feedReader) step(t *testing.T) bool {
	t.Helper()
	resp, err := f.stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range resp.GetDelta().GetBundles() {
		f.bundles[b.GetBundle().GetTrustDomain()] = b.GetBundle()
	}
	for _, td := range resp.GetDelta().GetRemovedBundles() {
		delete(f.bundles, td)
	}
	for _, e := range resp.GetDelta().GetUpserts() {
		f.entries[e.GetEntry().GetId()] = e.GetEntry()
	}
	return resp.GetSynced() != nil
}

// until reads until ok, which the test's deadline bounds.
func (f *feedReader) until(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		f.step(t)
	}
}

func (f *feedReader) has(want *types.Bundle) func() bool {
	return func() bool { return proto.Equal(want, f.bundles[want.GetTrustDomain()]) }
}

func newPKIX(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestTrustReachesAgents changes bundles of others in every way: each change is
// told on the agent's open feed, and is there for SPIRE's sync when the call
// returns.
func TestTrustReachesAgents(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	agent := r.attest(t)
	admin, asAgent := bundlev1.NewBundleClient(r.admin(t)), bundlev1.NewBundleClient(agent.conn)
	related := trustdomainv1.NewTrustDomainClient(r.admin(t))
	bundle := func(hint int64) *types.Bundle {
		return &types.Bundle{
			TrustDomain: "other.test", RefreshHint: hint, SequenceNumber: 9,
			JwtAuthorities: []*types.JWTKey{{KeyId: "k", PublicKey: newPKIX(t), ExpiresAt: 1900000000}},
			WitAuthorities: []*types.WITKey{{KeyId: "w", PublicKey: newPKIX(t)}},
		}
	}
	set := bundle(1)
	if _, err := admin.BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{set}}); err != nil {
		t.Fatal(err)
	}
	entry := r.register(t, &types.Entry{SpiffeId: wireID("/w"), ParentId: wireID(agent.id.Path()), FederatesWith: []string{"other.test"}})
	feed := r.watch(t, agent)
	feed.until(t, feed.has(set))

	check := func(name string, st *types.Status, err error, want *types.Bundle) {
		t.Helper()
		if err != nil || st.GetCode() != 0 {
			t.Fatalf("%s: %v, %v", name, st, err)
		}
		got, err := asAgent.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.test"})
		if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("%s, for SPIRE's agents: %v (-want +got):\n%s", name, err, diff)
		}
		feed.until(t, feed.has(want))
	}
	next := bundle(2)
	updated, err := admin.BatchUpdateFederatedBundle(t.Context(), &bundlev1.BatchUpdateFederatedBundleRequest{Bundle: []*types.Bundle{next}})
	check("update", updated.GetResults()[0].GetStatus(), err, next)
	next = bundle(3)
	replaced, err := admin.BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{next}})
	check("set", replaced.GetResults()[0].GetStatus(), err, next)
	next = bundle(4)
	created, err := related.BatchCreateFederationRelationship(t.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{{
			TrustDomain: "other.test", BundleEndpointUrl: "https://other.test",
			BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}, TrustDomainBundle: next,
		}},
	})
	check("relationship", created.GetResults()[0].GetStatus(), err, next)

	restrict, err := admin.BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{"other.test"}})
	if err != nil || codes.Code(restrict.Results[0].Status.Code) != codes.FailedPrecondition {
		t.Errorf("restrict: %v, %v", restrict, err)
	}
	gone, err := admin.BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{
		TrustDomains: []string{"other.test"}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE,
	})
	if err != nil || gone.Results[0].Status.Code != 0 {
		t.Fatalf("dissociate: %v, %v", gone, err)
	}
	if b, err := asAgent.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.test"}); status.Code(err) != codes.NotFound {
		t.Errorf("for SPIRE's agents: %v, %v, want NotFound", b, err)
	}
	feed.until(t, func() bool {
		return feed.bundles["other.test"] == nil && len(feed.entries[entry].GetFederatesWith()) == 0
	})
}

// TestAppendedAuthorityIsTrusted: when AppendBundle returns, this server takes
// certificates of the new authority, and agents are told.
func TestAppendedAuthorityIsTrusted(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.AdminIDs = []string{"spiffe://example.org/admin"}
	r := start(t, cfg)
	feed := r.watch(t, r.attest(t))
	other := newSecondCA(t)
	cert := other.issue(t, svid.Workload, "/admin")
	if err := calls["ListEntries"](t.Context(), r.dial(t, cert)); err == nil {
		t.Fatal("an authority that is not in the bundle is trusted")
	}
	got, err := bundlev1.NewBundleClient(r.admin(t)).AppendBundle(t.Context(), &bundlev1.AppendBundleRequest{
		X509Authorities: []*types.X509Certificate{{Asn1: other.der}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := calls["ListEntries"](t.Context(), r.dial(t, cert)); err != nil {
		t.Errorf("the appended authority is not trusted: %v", err)
	}
	feed.until(t, feed.has(got))
	if diff := cmp.Diff(got, r.bundle(t), protocmp.Transform()); diff != "" {
		t.Errorf("(-answered +served):\n%s", diff)
	}
}

// TestDownstreamPublishesKeys: a nested server adds its keys to the bundle of the
// trust domain, gets all of them, and agents are told.
func TestDownstreamPublishesKeys(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	agent := r.attest(t)
	feed := r.watch(t, agent)
	r.register(t, &types.Entry{SpiffeId: wireID("/down"), ParentId: wireID("/spire/server"), Downstream: true})
	down := bundlev1.NewBundleClient(r.dial(t, r.mint(t, "/down")))
	before := r.bundle(t)
	jwt := &types.JWTKey{KeyId: "down-jwt", PublicKey: newPKIX(t), ExpiresAt: time.Now().Add(time.Hour).Unix()}
	wit := &types.WITKey{KeyId: "down-wit", PublicKey: newPKIX(t), ExpiresAt: time.Now().Add(time.Hour).Unix()}
	gotJWT, err := down.PublishJWTAuthority(t.Context(), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: jwt})
	if diff := cmp.Diff(slices.Concat(before.JwtAuthorities, []*types.JWTKey{jwt}), gotJWT.GetJwtAuthorities(), protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("JWT: %v (-want +got):\n%s", err, diff)
	}
	gotWIT, err := down.PublishWITAuthority(t.Context(), &bundlev1.PublishWITAuthorityRequest{WitAuthority: wit})
	if diff := cmp.Diff([]*types.WITKey{wit}, gotWIT.GetWitAuthorities(), protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("WIT: %v (-want +got):\n%s", err, diff)
	}
	feed.until(t, feed.has(r.bundle(t)))
	if now := r.bundle(t); now.SequenceNumber != before.SequenceNumber+2 || len(now.WitAuthorities) != 1 {
		t.Errorf("bundle: %v", now)
	}
	for name, client := range map[string]bundlev1.BundleClient{"local": bundlev1.NewBundleClient(r.admin(t)), "agent": bundlev1.NewBundleClient(agent.conn)} {
		if _, err := client.PublishJWTAuthority(t.Context(), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: jwt}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v, want PermissionDenied", name, err)
		}
	}
}
