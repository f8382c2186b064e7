package importer

import (
	"context"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

// federationPage and federationBatch count bundles, of some dozen kilobytes at
// most.
const (
	federationPage  = 50
	federationBatch = 20
)

func (r *run) bundles(ctx context.Context) (err error) {
	set := func(ctx context.Context, conn grpc.ClientConnInterface, items []*types.Bundle) ([]result, error) {
		resp, err := bundlev1.NewBundleClient(conn).BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: items})
		return statuses(resp.GetResults()), err
	}
	r.report.Bundles, err = copyAll(ctx, r, kind[*types.Bundle]{
		name: "bundle", plural: "bundles of other trust domains", batch: federationBatch,
		id:        (*types.Bundle).GetTrustDomain,
		canonical: canonicalBundle,
		list: func(ctx context.Context, conn grpc.ClientConnInterface, token string) ([]*types.Bundle, string, error) {
			page, err := bundlev1.NewBundleClient(conn).ListFederatedBundles(ctx, &bundlev1.ListFederatedBundlesRequest{PageSize: federationPage, PageToken: token})
			return page.GetBundles(), page.GetNextPageToken(), err
		},
		get: func(ctx context.Context, conn grpc.ClientConnInterface, id string) (*types.Bundle, error) {
			return bundlev1.NewBundleClient(conn).GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: id})
		},
		create: set,
		update: set,
	})
	return err
}

func (r *run) relationships(ctx context.Context) (err error) {
	r.report.Relationships, err = copyAll(ctx, r, kind[*types.FederationRelationship]{
		name: "federation relationship", plural: "federation relationships", batch: federationBatch,
		id:        (*types.FederationRelationship).GetTrustDomain,
		canonical: canonicalRelationship,
		list: func(ctx context.Context, conn grpc.ClientConnInterface, token string) ([]*types.FederationRelationship, string, error) {
			page, err := trustdomainv1.NewTrustDomainClient(conn).ListFederationRelationships(ctx, &trustdomainv1.ListFederationRelationshipsRequest{
				PageSize: federationPage, PageToken: token, OutputMask: relationshipMask,
			})
			return page.GetFederationRelationships(), page.GetNextPageToken(), err
		},
		get: func(ctx context.Context, conn grpc.ClientConnInterface, id string) (*types.FederationRelationship, error) {
			return trustdomainv1.NewTrustDomainClient(conn).GetFederationRelationship(ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: id, OutputMask: relationshipMask})
		},
		create: func(ctx context.Context, conn grpc.ClientConnInterface, items []*types.FederationRelationship) ([]result, error) {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchCreateFederationRelationship(ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: items})
			return statuses(resp.GetResults()), err
		},
		update: func(ctx context.Context, conn grpc.ClientConnInterface, items []*types.FederationRelationship) ([]result, error) {
			resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchUpdateFederationRelationship(ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
				FederationRelationships: items, InputMask: relationshipMask,
			})
			return statuses(resp.GetResults()), err
		},
	})
	return err
}

// relationshipMask is a relationship without its bundle.
var relationshipMask = &types.FederationRelationshipMask{BundleEndpointUrl: true, BundleEndpointProfile: true}
