package bundleapi

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Config of a Service. All fields are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// Own is this trust domain's bundle as this server knows it; nil before
	// it does.
	Own func() *registry.Bundle
	// Federated is the bundle of another trust domain.
	Federated func(spiffeid.TrustDomain) (*registry.Bundle, bool)
	// Fresh returns once Federated is as new as the store was at the call.
	Fresh func(context.Context) error
}

// Service is bundle.v1. Who may call was decided before. Calls that are not
// methods of Service are Unimplemented.
type Service struct {
	bundlev1.UnimplementedBundleServer
	cfg Config
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

var errNotFound = rpcerr.New(codes.NotFound, "bundle not found")

// GetBundle returns the bundle of this server's trust domain.
func (s *Service) GetBundle(_ context.Context, req *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	b := s.cfg.Own()
	if b == nil {
		return nil, errNotFound
	}
	return show(b, req.GetOutputMask()), nil
}

// GetFederatedBundle returns the bundle of another trust domain, or NotFound.
func (s *Service) GetFederatedBundle(ctx context.Context, req *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(req.GetTrustDomain())
	if err != nil {
		return nil, rpcerr.New(codes.InvalidArgument, "trust domain argument is not valid: %v", err)
	}
	if td == s.cfg.TrustDomain {
		return nil, rpcerr.New(codes.InvalidArgument, "getting a federated bundle for the server's own trust domain is not allowed")
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	b, ok := s.cfg.Federated(td)
	if !ok {
		return nil, errNotFound
	}
	return show(b, req.GetOutputMask()), nil
}

// show is the bundle with the fields of the mask (nil: all) and its trust
// domain.
func show(b *registry.Bundle, mask *types.BundleMask) *types.Bundle {
	m := b.ToWire()
	if mask == nil {
		return m
	}
	if !mask.X509Authorities {
		m.X509Authorities = nil
	}
	if !mask.JwtAuthorities {
		m.JwtAuthorities = nil
	}
	if !mask.RefreshHint {
		m.RefreshHint = 0
	}
	if !mask.SequenceNumber {
		m.SequenceNumber = 0
	}
	return m
}
