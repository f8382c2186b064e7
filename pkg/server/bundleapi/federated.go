package bundleapi

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// GetFederatedBundle returns the bundle of another trust domain, or NotFound.
func (s *Service) GetFederatedBundle(ctx context.Context, req *bundlev1.GetFederatedBundleRequest) (*types.Bundle, error) {
	td, err := s.foreign(req.GetTrustDomain(), "getting a federated bundle for the server's own trust domain is not allowed")
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	b, ok := s.cfg.Index.Bundle(td)
	if !ok {
		return nil, errNotFound
	}
	return show(b, req.GetOutputMask()), nil
}

// ListFederatedBundles lists the bundles of other trust domains by their names.
// A page has at most page_size bundles, if it is set, and at most maxMessage
// bytes; the token is the name of its last trust domain.
func (s *Service) ListFederatedBundles(ctx context.Context, req *bundlev1.ListFederatedBundlesRequest) (*bundlev1.ListFederatedBundlesResponse, error) {
	after := req.GetPageToken()
	if after != "" {
		if _, err := registry.TrustDomainFromWire(after); err != nil {
			return nil, rpcerr.New(codes.InvalidArgument, "page token is not one of this server's")
		}
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	resp := &bundlev1.ListFederatedBundlesResponse{}
	size := 0
	for more := true; more; {
		page, next := s.cfg.Index.ListBundles(after, registry.MaxPage)
		for _, b := range page {
			if b.TrustDomain == s.cfg.TrustDomain {
				continue
			}
			m := show(b, req.GetOutputMask())
			n := proto.Size(m)
			full := req.GetPageSize() > 0 && len(resp.Bundles) == int(req.GetPageSize())
			if full || len(resp.Bundles) > 0 && size+n > maxMessage {
				resp.NextPageToken = resp.Bundles[len(resp.Bundles)-1].GetTrustDomain()
				return resp, nil
			}
			resp.Bundles, size = append(resp.Bundles, m), size+n
		}
		after, more = next, next != ""
	}
	return resp, nil
}

// BatchCreateFederatedBundle stores bundles of trust domains that have none.
func (s *Service) BatchCreateFederatedBundle(ctx context.Context, req *bundlev1.BatchCreateFederatedBundleRequest) (*bundlev1.BatchCreateFederatedBundleResponse, error) {
	out, err := s.batch(ctx, change{
		action: "bundle.create",
		own:    "creating a federated bundle for the server's own trust domain is not allowed",
		failed: "unable to create bundle",
		apply: func(now, given *registry.Bundle) (*registry.Bundle, error) {
			if now != nil {
				return nil, rpcerr.New(codes.AlreadyExists, "bundle already exists")
			}
			return given, nil
		},
	}, req.GetBundle(), nil, req.GetOutputMask())
	if err != nil {
		return nil, err
	}
	resp := &bundlev1.BatchCreateFederatedBundleResponse{}
	for _, r := range out {
		resp.Results = append(resp.Results, &bundlev1.BatchCreateFederatedBundleResponse_Result{Status: r.status, Bundle: r.bundle})
	}
	return resp, nil
}

// BatchUpdateFederatedBundle sets the fields of the input mask (nil: all) of
// bundles that are there.
func (s *Service) BatchUpdateFederatedBundle(ctx context.Context, req *bundlev1.BatchUpdateFederatedBundleRequest) (*bundlev1.BatchUpdateFederatedBundleResponse, error) {
	out, err := s.batch(ctx, change{
		action: "bundle.update",
		own:    "updating a federated bundle for the server's own trust domain is not allowed",
		failed: "failed to update bundle",
		apply: func(now, given *registry.Bundle) (*registry.Bundle, error) {
			if now == nil {
				return nil, errNotFound
			}
			next := now.ToWire()
			overlay(next, given.ToWire(), req.GetInputMask())
			return registry.BundleFromWire(next)
		},
	}, req.GetBundle(), req.GetInputMask(), req.GetOutputMask())
	if err != nil {
		return nil, err
	}
	resp := &bundlev1.BatchUpdateFederatedBundleResponse{}
	for _, r := range out {
		resp.Results = append(resp.Results, &bundlev1.BatchUpdateFederatedBundleResponse_Result{Status: r.status, Bundle: r.bundle})
	}
	return resp, nil
}

// BatchSetFederatedBundle stores bundles, in place of those that are there.
func (s *Service) BatchSetFederatedBundle(ctx context.Context, req *bundlev1.BatchSetFederatedBundleRequest) (*bundlev1.BatchSetFederatedBundleResponse, error) {
	out, err := s.batch(ctx, change{
		action: "bundle.set",
		own:    "setting a federated bundle for the server's own trust domain is not allowed",
		failed: "failed to set bundle",
		apply:  func(_, given *registry.Bundle) (*registry.Bundle, error) { return given, nil },
	}, req.GetBundle(), nil, req.GetOutputMask())
	if err != nil {
		return nil, err
	}
	resp := &bundlev1.BatchSetFederatedBundleResponse{}
	for _, r := range out {
		resp.Results = append(resp.Results, &bundlev1.BatchSetFederatedBundleResponse_Result{Status: r.status, Bundle: r.bundle})
	}
	return resp, nil
}

// change is one of the ways to change bundles.
type change struct {
	action string
	// own is the answer for this server's own trust domain, failed what the
	// store's errors begin with.
	own, failed string
	// apply makes the bundle that shall be of the one that is, nil for none,
	// and the one that was given.
	apply func(now, given *registry.Bundle) (*registry.Bundle, error)
}

// outcome is what becomes of one item of a batch.
type outcome struct {
	status *types.Status
	bundle *types.Bundle
}

// batch makes one change to each of the bundles. Of a bundle, only the fields of
// the input mask are read.
func (s *Service) batch(ctx context.Context, c change, bundles []*types.Bundle, input, output *types.BundleMask) ([]outcome, error) {
	if err := checkBatch(len(bundles)); err != nil {
		return nil, err
	}
	out := make([]outcome, len(bundles))
	ends := make([]func(error), len(bundles))
	updates := make([]registry.BundleUpdate, 0, len(bundles))
	places := make([]int, 0, len(bundles)) // of updates in out
	for i, m := range bundles {
		given, err := s.read(m, c.own, input)
		if err != nil {
			s.cfg.Audit.Record(ctx, event(ctx, c.action, m.GetTrustDomain()), err)
			out[i].status = s.item(ctx, err)
			continue
		}
		done := s.cfg.Audit.Begin(ctx, event(ctx, c.action, given.TrustDomain.Name(), authorities(given)...))
		ends[i] = func(err error) { done(err) }
		updates = append(updates, registry.BundleUpdate{
			TrustDomain: given.TrustDomain,
			Change:      func(now *registry.Bundle) (*registry.Bundle, error) { return c.apply(now, given) },
		})
		places = append(places, i)
	}
	changed := s.cfg.Registry.UpdateBundles(ctx, updates)
	if len(updates) > 0 {
		s.settle(ctx)
	}
	for j, r := range changed {
		i := places[j]
		ends[i](r.Err)
		out[i].status = s.item(ctx, c.err(r.Err))
		if r.Err == nil {
			out[i].bundle = show(r.Bundle, output)
		}
	}
	return out, nil
}

// err is what the client is told of a change that did not come about.
func (c change) err(err error) error {
	if e, ok := errors.AsType[*rpcerr.Error](err); ok {
		return e
	}
	return rpcerr.Prefix(err, c.failed)
}

// read reads the fields of the mask of one bundle of a batch.
func (s *Service) read(m *types.Bundle, own string, mask *types.BundleMask) (*registry.Bundle, error) {
	if _, err := s.foreign(m.GetTrustDomain(), own); err != nil {
		return nil, err
	}
	w := &types.Bundle{TrustDomain: m.GetTrustDomain()}
	overlay(w, m, mask)
	b, err := registry.BundleFromWire(w)
	return b, rpcerr.Prefix(err, "failed to convert bundle")
}

// foreign reads the name of another trust domain.
func (s *Service) foreign(name, own string) (spiffeid.TrustDomain, error) {
	td, err := registry.TrustDomainFromWire(name)
	if err != nil {
		return spiffeid.TrustDomain{}, rpcerr.New(codes.InvalidArgument, "trust domain argument is not valid: %v", err)
	}
	if td == s.cfg.TrustDomain {
		return spiffeid.TrustDomain{}, rpcerr.New(codes.InvalidArgument, "%s", own)
	}
	return td, nil
}

func checkBatch(n int) error {
	if n > MaxBatch {
		return rpcerr.New(codes.InvalidArgument, "batch has %d items, at most %d are allowed: split it", n, MaxBatch)
	}
	return nil
}

// item is the status of one item of a batch.
func (s *Service) item(ctx context.Context, err error) *types.Status {
	return rpcerr.Item(ctx, s.cfg.Logger, err)
}
