package trustdomainapi

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

var errNotFound = rpcerr.New(codes.NotFound, "federation relationship not found")

// BatchCreateFederationRelationship makes relationships, and sets the bundles
// that come with them.
func (s *Service) BatchCreateFederationRelationship(ctx context.Context, req *trustdomainv1.BatchCreateFederationRelationshipRequest) (*trustdomainv1.BatchCreateFederationRelationshipResponse, error) {
	list := req.GetFederationRelationships()
	b, err := s.begin(len(list))
	if err != nil {
		return nil, err
	}
	for i, m := range list {
		u, err := s.creation(m)
		b.add(ctx, i, "federation.create", m.GetTrustDomain(), u, err)
	}
	resp := &trustdomainv1.BatchCreateFederationRelationshipResponse{}
	for i, r := range b.run(ctx, "failed to create federation relationship") {
		result := &trustdomainv1.BatchCreateFederationRelationshipResponse_Result{Status: s.item(ctx, r.Err)}
		if r.Err == nil {
			// As it was given: a bundle that was there before is not shown.
			if list[i].GetTrustDomainBundle() == nil {
				r.Bundle = nil
			}
			result.FederationRelationship = show(r.Relationship, r.Bundle, req.GetOutputMask())
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
}

// BatchUpdateFederationRelationship sets the fields of the input mask (nil: all)
// of relationships that are there. Of those given, only these fields are read.
func (s *Service) BatchUpdateFederationRelationship(ctx context.Context, req *trustdomainv1.BatchUpdateFederationRelationshipRequest) (*trustdomainv1.BatchUpdateFederationRelationshipResponse, error) {
	list := req.GetFederationRelationships()
	b, err := s.begin(len(list))
	if err != nil {
		return nil, err
	}
	for i, m := range list {
		u, err := update(m, req.GetInputMask())
		b.add(ctx, i, "federation.update", m.GetTrustDomain(), u, err)
	}
	resp := &trustdomainv1.BatchUpdateFederationRelationshipResponse{}
	for _, r := range b.run(ctx, "failed to update federation relationship") {
		result := &trustdomainv1.BatchUpdateFederationRelationshipResponse_Result{Status: s.item(ctx, r.Err)}
		if r.Err == nil {
			result.FederationRelationship = show(r.Relationship, r.Bundle, req.GetOutputMask())
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
}

// BatchDeleteFederationRelationship removes relationships. The bundles stay:
// bundle.v1 deletes them.
func (s *Service) BatchDeleteFederationRelationship(ctx context.Context, req *trustdomainv1.BatchDeleteFederationRelationshipRequest) (*trustdomainv1.BatchDeleteFederationRelationshipResponse, error) {
	b, err := s.begin(len(req.GetTrustDomains()))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(req.GetTrustDomains()))
	for i, name := range req.GetTrustDomains() {
		td, err := parseDeleted(name)
		if names[i] = name; err == nil {
			names[i] = td.Name()
		}
		b.add(ctx, i, "federation.delete", name, registry.RelationshipUpdate{TrustDomain: td, Change: remove}, err)
	}
	resp := &trustdomainv1.BatchDeleteFederationRelationshipResponse{}
	for i, r := range b.run(ctx, "failed to delete federation relationship") {
		resp.Results = append(resp.Results, &trustdomainv1.BatchDeleteFederationRelationshipResponse_Result{
			Status: s.item(ctx, r.Err), TrustDomain: names[i],
		})
	}
	return resp, nil
}

func parseDeleted(name string) (spiffeid.TrustDomain, error) {
	if name == "" {
		return spiffeid.TrustDomain{}, rpcerr.New(codes.InvalidArgument, "missing trust domain")
	}
	return parse(name)
}

func remove(now *registry.FederationRelationship) (*registry.FederationRelationship, error) {
	if now == nil {
		return nil, errNotFound
	}
	return nil, nil
}

func (s *Service) creation(m *types.FederationRelationship) (registry.RelationshipUpdate, error) {
	f, b, err := registry.RelationshipFromWire(m)
	if err != nil {
		return registry.RelationshipUpdate{}, rpcerr.Prefix(err, "failed to convert federation relationship")
	}
	if f.TrustDomain == s.cfg.TrustDomain {
		return registry.RelationshipUpdate{}, rpcerr.New(codes.InvalidArgument, "unable to create federation relationship for server trust domain")
	}
	return registry.RelationshipUpdate{
		TrustDomain: f.TrustDomain,
		Bundle:      b,
		Change: func(now *registry.FederationRelationship) (*registry.FederationRelationship, error) {
			if now != nil {
				return nil, rpcerr.New(codes.AlreadyExists, "federation relationship already exists")
			}
			return f, nil
		},
	}, nil
}

// unread stands for the fields that a mask leaves out, so that the others can be
// read by the rules for a whole relationship.
const unread = "https://unread.invalid"

func update(m *types.FederationRelationship, mask *types.FederationRelationshipMask) (registry.RelationshipUpdate, error) {
	w := &types.FederationRelationship{
		TrustDomain: m.GetTrustDomain(), BundleEndpointUrl: unread,
		BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{},
	}
	if m != nil {
		overlay(w, m, mask)
	}
	f, b, err := registry.RelationshipFromWire(w)
	if err != nil {
		return registry.RelationshipUpdate{}, rpcerr.Prefix(err, "failed to convert federation relationship")
	}
	return registry.RelationshipUpdate{
		TrustDomain: f.TrustDomain,
		Bundle:      b,
		Change: func(now *registry.FederationRelationship) (*registry.FederationRelationship, error) {
			if now == nil {
				return nil, errNotFound
			}
			next := *now
			if mask == nil || mask.BundleEndpointUrl {
				next.EndpointURL = f.EndpointURL
			}
			if mask == nil || mask.BundleEndpointProfile {
				next.EndpointSPIFFEID = f.EndpointSPIFFEID
			}
			return &next, nil
		},
	}, nil
}

// keySetsBundle is the attribute of a change that also sets the bundle.
const keySetsBundle = "sets_bundle"

// batch is the items of one call.
type batch struct {
	service *Service
	results []registry.RelationshipResult
	updates []registry.RelationshipUpdate
	places  []int // of updates in results
	ends    []func(error)
}

func (s *Service) begin(n int) (*batch, error) {
	if n > MaxBatch {
		return nil, rpcerr.New(codes.InvalidArgument, "batch has %d items, at most %d are allowed: split it", n, MaxBatch)
	}
	return &batch{service: s, results: make([]registry.RelationshipResult, n)}, nil
}

// add notes what to do for the item i, or why nothing will be.
func (b *batch) add(ctx context.Context, i int, action, name string, u registry.RelationshipUpdate, err error) {
	caller, _ := policy.FromContext(ctx)
	e := audit.Event{Action: action, Caller: caller.String(), CallerKind: caller.Roles.String(), Subject: name}
	if u.Bundle != nil {
		e.Attrs = append(e.Attrs, slog.Bool(keySetsBundle, true))
	}
	if err != nil {
		b.service.cfg.Audit.Record(ctx, e, err)
		b.results[i].Err = err
		return
	}
	done := b.service.cfg.Audit.Begin(ctx, e)
	b.updates, b.places = append(b.updates, u), append(b.places, i)
	b.ends = append(b.ends, func(err error) { done(err) })
}

// run makes the changes and returns the outcome of every item, with errors as
// the client is told them.
func (b *batch) run(ctx context.Context, failed string) []registry.RelationshipResult {
	if len(b.updates) == 0 {
		return b.results
	}
	out := b.service.cfg.Registry.UpdateRelationships(ctx, b.updates)
	b.service.settle(ctx)
	for j, r := range out {
		b.ends[j](r.Err)
		if _, known := errors.AsType[*rpcerr.Error](r.Err); !known {
			r.Err = rpcerr.Prefix(r.Err, failed)
		}
		b.results[b.places[j]] = r
	}
	return b.results
}

// settle gives this server's own view of a write that is done a moment to show
// it, so that what the client does next finds it done everywhere. The write
// stands whatever comes of that, and reads wait for themselves.
func (s *Service) settle(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = s.cfg.Fresh(waiting)
}

// item is the status of one item of a batch.
func (s *Service) item(ctx context.Context, err error) *types.Status {
	return rpcerr.Item(ctx, s.cfg.Logger, err)
}
