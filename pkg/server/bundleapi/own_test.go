package bundleapi

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/registry"
)

// The store may be away: the bundle is in memory.
func TestGetBundle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.away = true
	got, err := f.GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	own, _ := f.index.Bundle(td)
	if diff := cmp.Diff(own.ToWire(), got, protocmp.Transform()); diff != "" || len(got.GetJwtAuthorities()) != 1 {
		t.Errorf("(-want +got):\n%s", diff)
	}
	none := New(Config{TrustDomain: td, Own: func() *registry.Bundle { return nil }})
	if _, err := none.GetBundle(t.Context(), &bundlev1.GetBundleRequest{OutputMask: &types.BundleMask{}}); codeOf(err) != codes.NotFound {
		t.Errorf("no bundle: got %v, want NotFound", err)
	}
}
