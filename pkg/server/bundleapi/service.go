package bundleapi

import (
	"context"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
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
	// Own is this trust domain's bundle as this server knows it; nil before
	// it does.
	Own func() *registry.Bundle
	// Fresh returns once Index, and what Own returns, is as new as the store
	// was at the call, and fails with store.ErrUnavailable when it does not
	// get there.
	Fresh  func(context.Context) error
	Logger *slog.Logger
	// Audit receives every change asked for; nil: nothing is recorded.
	Audit *audit.Log
}

// Service is bundle.v1. Who may call was decided before.
type Service struct {
	bundlev1.UnimplementedBundleServer
	cfg Config
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

var errNotFound = rpcerr.New(codes.NotFound, "bundle not found")

// GetBundle returns the bundle of this server's trust domain. It answers whatever
// becomes of the store; operators, who may have changed the bundle at another
// server a moment ago, are given the newest if that can be had.
func (s *Service) GetBundle(ctx context.Context, req *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	if caller, _ := policy.FromContext(ctx); caller.Is(policy.Local) || caller.Is(policy.Admin) {
		s.settle(ctx)
	}
	b := s.cfg.Own()
	if b == nil {
		return nil, errNotFound
	}
	return show(b, req.GetOutputMask()), nil
}

// CountBundles counts all bundles, this trust domain's among them.
func (s *Service) CountBundles(ctx context.Context, _ *bundlev1.CountBundlesRequest) (*bundlev1.CountBundlesResponse, error) {
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	return &bundlev1.CountBundlesResponse{Count: int32(s.cfg.Index.CountBundles())}, nil
}

// show is the bundle with the fields of the mask (nil: all) and its trust
// domain.
func show(b *registry.Bundle, mask *types.BundleMask) *types.Bundle {
	all := b.ToWire()
	if mask == nil {
		return all
	}
	out := &types.Bundle{TrustDomain: all.TrustDomain}
	overlay(out, all, mask)
	return out
}

// overlay sets in to the fields of from that the mask (nil: all) names.
func overlay(to, from *types.Bundle, mask *types.BundleMask) {
	if mask == nil || mask.X509Authorities {
		to.X509Authorities = from.X509Authorities
	}
	if mask == nil || mask.JwtAuthorities {
		to.JwtAuthorities = from.JwtAuthorities
	}
	if mask == nil || mask.WitAuthorities {
		to.WitAuthorities = from.WitAuthorities
	}
	if mask == nil || mask.RefreshHint {
		to.RefreshHint = from.RefreshHint
	}
	if mask == nil || mask.SequenceNumber {
		to.SequenceNumber = from.SequenceNumber
	}
}

// settle gives this server's own view of a write that is done a moment to show
// it, so that what the client does next finds it done everywhere. The write
// stands whatever comes of that, and reads wait for themselves.
func (s *Service) settle(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = s.cfg.Fresh(waiting)
}

// event is the audit record of a change of one trust domain's bundle.
func event(ctx context.Context, action, trustDomain string, attrs ...slog.Attr) audit.Event {
	caller, _ := policy.FromContext(ctx)
	return audit.Event{
		Action: action, Caller: caller.String(), CallerKind: caller.Roles.String(), Subject: trustDomain, Attrs: attrs,
	}
}
