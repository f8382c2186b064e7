package trustdomainapi

import (
	"context"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Limits of one call.
const (
	// MaxBatch is how many items one batch may have.
	MaxBatch = 1000
	// maxMessage is where a list is cut, in bytes: below the 4 MiB that gRPC
	// clients take by default.
	maxMessage = 3 << 20
	// settleWait is how long the answer to a write waits for this server to
	// see it too.
	settleWait = time.Second
)

// Config of a Service. All but Audit is required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Registry    *registry.Registry
	Index       *registry.Index
	// Fresh returns once Index is as new as the store was at the call, and
	// fails with store.ErrUnavailable when it does not get there.
	Fresh  func(context.Context) error
	Logger *slog.Logger
	// Audit receives every change asked for; nil: nothing is recorded.
	Audit *audit.Log
}

// Service is trustdomain.v1. Who may call was decided before.
type Service struct {
	trustdomainv1.UnimplementedTrustDomainServer
	cfg Config
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// ListFederationRelationships lists relationships by the names of their trust
// domains. A page has at most page_size relationships, if it is set, and at most
// maxMessage bytes; the token is the name of its last trust domain.
func (s *Service) ListFederationRelationships(ctx context.Context, req *trustdomainv1.ListFederationRelationshipsRequest) (*trustdomainv1.ListFederationRelationshipsResponse, error) {
	after := req.GetPageToken()
	if after != "" {
		if _, err := registry.TrustDomainFromWire(after); err != nil {
			return nil, rpcerr.New(codes.InvalidArgument, "page token is not one of this server's")
		}
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	resp := &trustdomainv1.ListFederationRelationshipsResponse{}
	size := 0
	for more := true; more; {
		page, next := s.cfg.Index.ListRelationships(after, registry.MaxPage)
		for _, f := range page {
			m := s.current(f, req.GetOutputMask())
			n := proto.Size(m)
			have := len(resp.FederationRelationships)
			full := req.GetPageSize() > 0 && have == int(req.GetPageSize())
			if full || have > 0 && size+n > maxMessage {
				resp.NextPageToken = resp.FederationRelationships[have-1].GetTrustDomain()
				return resp, nil
			}
			resp.FederationRelationships, size = append(resp.FederationRelationships, m), size+n
		}
		after, more = next, next != ""
	}
	return resp, nil
}

// GetFederationRelationship returns the relationship with a trust domain, and
// that trust domain's bundle as it is now, or NotFound.
func (s *Service) GetFederationRelationship(ctx context.Context, req *trustdomainv1.GetFederationRelationshipRequest) (*types.FederationRelationship, error) {
	td, err := parse(req.GetTrustDomain())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	f, ok := s.cfg.Index.Relationship(td)
	if !ok {
		return nil, rpcerr.New(codes.NotFound, "federation relationship does not exist")
	}
	return s.current(f, req.GetOutputMask()), nil
}

// RefreshBundle is not served yet: NotFound for a trust domain without a
// relationship, else Unimplemented.
func (s *Service) RefreshBundle(ctx context.Context, req *trustdomainv1.RefreshBundleRequest) (*emptypb.Empty, error) {
	td, err := parse(req.GetTrustDomain())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	if _, ok := s.cfg.Index.Relationship(td); !ok {
		return nil, rpcerr.New(codes.NotFound, "no relationship with trust domain %q", td.Name())
	}
	return nil, rpcerr.New(codes.Unimplemented,
		"this server does not fetch bundles from bundle endpoints yet: set the bundle of %q by hand", td.Name())
}

// current is the relationship with the bundle of its trust domain as it is now.
func (s *Service) current(f *registry.FederationRelationship, mask *types.FederationRelationshipMask) *types.FederationRelationship {
	var b *registry.Bundle
	if mask == nil || mask.TrustDomainBundle {
		b, _ = s.cfg.Index.Bundle(f.TrustDomain)
	}
	return show(f, b, mask)
}

// show is the relationship with the fields of the mask (nil: all) and its trust
// domain.
func show(f *registry.FederationRelationship, b *registry.Bundle, mask *types.FederationRelationshipMask) *types.FederationRelationship {
	all := f.ToWire(b)
	out := &types.FederationRelationship{TrustDomain: all.TrustDomain}
	overlay(out, all, mask)
	return out
}

// overlay sets in to the fields of from that the mask (nil: all) names.
func overlay(to, from *types.FederationRelationship, mask *types.FederationRelationshipMask) {
	if mask == nil || mask.BundleEndpointUrl {
		to.BundleEndpointUrl = from.BundleEndpointUrl
	}
	if mask == nil || mask.BundleEndpointProfile {
		to.BundleEndpointProfile = from.BundleEndpointProfile
	}
	if mask == nil || mask.TrustDomainBundle {
		to.TrustDomainBundle = from.TrustDomainBundle
	}
}

func parse(name string) (spiffeid.TrustDomain, error) {
	td, err := registry.TrustDomainFromWire(name)
	if err != nil {
		return spiffeid.TrustDomain{}, rpcerr.New(codes.InvalidArgument, "failed to parse trust domain: %v", err)
	}
	return td, nil
}
