package bundleapi

import (
	"context"
	"errors"
	"log/slog"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// keyMode is the attribute of what becomes of entries that federate with a
// bundle that is deleted.
const keyMode = "mode"

var modes = map[bundlev1.BatchDeleteFederatedBundleRequest_Mode]registry.DeleteMode{
	bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT:   registry.Restrict,
	bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE: registry.Dissociate,
	bundlev1.BatchDeleteFederatedBundleRequest_DELETE:     registry.Delete,
}

// BatchDeleteFederatedBundle deletes bundles of other trust domains, and does
// with the entries that federate with them what the mode says. A deletion that
// is cut short (the deadline, the store) has changed some of the entries and not
// the bundle; calling again goes on.
func (s *Service) BatchDeleteFederatedBundle(ctx context.Context, req *bundlev1.BatchDeleteFederatedBundleRequest) (*bundlev1.BatchDeleteFederatedBundleResponse, error) {
	mode, ok := modes[req.GetMode()]
	if !ok {
		return nil, rpcerr.New(codes.InvalidArgument, "failed to parse deletion mode: unhandled delete mode %q", req.GetMode())
	}
	if err := checkBatch(len(req.GetTrustDomains())); err != nil {
		return nil, err
	}
	resp := &bundlev1.BatchDeleteFederatedBundleResponse{}
	for _, name := range req.GetTrustDomains() {
		done := s.cfg.Audit.Begin(ctx, event(ctx, "bundle.delete", name, slog.String(keyMode, req.GetMode().String())))
		err := s.delete(ctx, name, mode)
		done(err)
		resp.Results = append(resp.Results, &bundlev1.BatchDeleteFederatedBundleResponse_Result{TrustDomain: name, Status: s.item(ctx, err)})
	}
	s.settle(ctx)
	return resp, nil
}

func (s *Service) delete(ctx context.Context, name string, mode registry.DeleteMode) error {
	td, err := s.foreign(name, "removing the bundle for the server trust domain is not allowed")
	if err != nil {
		return err
	}
	err = s.cfg.Registry.DeleteBundle(ctx, td, mode, s.cfg.Index, s.cfg.Fresh)
	if errors.Is(err, registry.ErrNotFound) {
		return errNotFound
	}
	if federated, ok := errors.AsType[*registry.FederatedError](err); ok {
		err = rpcerr.New(codes.FailedPrecondition, "%v", federated)
	}
	return rpcerr.Prefix(err, "failed to delete federated bundle")
}
