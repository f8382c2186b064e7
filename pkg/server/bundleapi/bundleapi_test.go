package bundleapi

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/store"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	other = spiffeid.RequireTrustDomainFromString("other.test")
)

func bundle(td spiffeid.TrustDomain) *registry.Bundle {
	return &registry.Bundle{
		TrustDomain:     td,
		X509Authorities: []registry.X509Authority{{DER: []byte("one")}, {DER: []byte("two"), Tainted: true}},
		JWTAuthorities:  []registry.JWTAuthority{{KeyID: "k", PKIX: []byte("key"), ExpiresAt: time.Unix(1700000000, 0), Tainted: true}},
		RefreshHint:     time.Minute,
		SequenceNumber:  7,
	}
}

func service(fresh error) *Service {
	return New(Config{
		TrustDomain: td,
		Own:         func() *registry.Bundle { return bundle(td) },
		Federated: func(of spiffeid.TrustDomain) (*registry.Bundle, bool) {
			return bundle(of), of == other
		},
		Fresh: func(context.Context) error { return fresh },
	})
}

func TestGetBundle(t *testing.T) {
	t.Parallel()
	// The store may be away: the bundle is in memory.
	s := service(store.ErrUnavailable)
	all, err := s.GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &types.Bundle{
		TrustDomain:     "example.org",
		X509Authorities: []*types.X509Certificate{{Asn1: []byte("one")}, {Asn1: []byte("two"), Tainted: true}},
		JwtAuthorities:  []*types.JWTKey{{KeyId: "k", PublicKey: []byte("key"), ExpiresAt: 1700000000, Tainted: true}},
		RefreshHint:     60, SequenceNumber: 7,
	}
	if diff := cmp.Diff(want, all, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestS15_BundleMask lets through what the mask names, field by field.
func TestS15_BundleMask(t *testing.T) {
	t.Parallel()
	s := service(nil)
	all := bundle(td).ToWire().ProtoReflect()
	fields := (&types.BundleMask{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		mask := &types.BundleMask{}
		mask.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfBool(true))
		got, err := s.GetBundle(t.Context(), &bundlev1.GetBundleRequest{OutputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		want := &types.Bundle{TrustDomain: "example.org"}
		fd := all.Descriptor().Fields().ByName(fields.Get(i).Name())
		if all.Has(fd) {
			want.ProtoReflect().Set(fd, all.Get(fd))
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", fd.Name(), diff)
		}
	}
}

func TestGetFederatedBundle(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		td    string
		fresh error
		code  codes.Code
	}{
		"known":             {"other.test", nil, codes.OK},
		"known, with slash": {"spiffe://other.test", nil, codes.OK},
		"unknown":           {"nobody.test", nil, codes.NotFound},
		"own":               {"example.org", nil, codes.InvalidArgument},
		"malformed":         {"NOT VALID", nil, codes.InvalidArgument},
		"store away":        {"other.test", store.ErrUnavailable, codes.Unavailable},
	} {
		got, err := service(tc.fresh).GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: tc.td})
		if code := rpcerr.Status(err).Code(); code != tc.code || (code == codes.OK && got.TrustDomain != "other.test") {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tc.code)
		}
	}
}

func TestNoBundle(t *testing.T) {
	t.Parallel()
	s := New(Config{TrustDomain: td, Own: func() *registry.Bundle { return nil }})
	if _, err := s.GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); rpcerr.Status(err).Code() != codes.NotFound {
		t.Errorf("got %v, want NotFound", err)
	}
	if _, err := s.AppendBundle(t.Context(), &bundlev1.AppendBundleRequest{}); rpcerr.Status(err).Code() != codes.Unimplemented {
		t.Errorf("AppendBundle: %v, want Unimplemented", err)
	}
}
