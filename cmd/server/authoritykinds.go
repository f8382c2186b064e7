package main

import (
	"context"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/protobuf/proto"
)

// x509Authorities are the calls about X.509 authorities.
var x509Authorities = authorityKind{
	name: "x509", title: "X.509", upstream: true,
	show: func(ctx context.Context, c authorityClient) (authorityStates, error) {
		return c.GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
	},
	prepare: func(ctx context.Context, c authorityClient, _ string) (proto.Message, *authorityState, error) {
		r, err := c.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
		return r, r.GetPreparedAuthority(), err
	},
	activate: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
		return r, r.GetActivatedAuthority(), err
	},
	taint: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: id})
		return r, r.GetTaintedAuthority(), err
	},
	revoke: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
		return r, r.GetRevokedAuthority(), err
	},
}

// jwtAuthorities are the calls about JWT authorities.
var jwtAuthorities = authorityKind{
	name: "jwt", title: "JWT",
	show: func(ctx context.Context, c authorityClient) (authorityStates, error) {
		return c.GetJWTAuthorityState(ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
	},
	prepare: func(ctx context.Context, c authorityClient, _ string) (proto.Message, *authorityState, error) {
		r, err := c.PrepareJWTAuthority(ctx, &localauthorityv1.PrepareJWTAuthorityRequest{})
		return r, r.GetPreparedAuthority(), err
	},
	activate: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.ActivateJWTAuthority(ctx, &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: id})
		return r, r.GetActivatedAuthority(), err
	},
	taint: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.TaintJWTAuthority(ctx, &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: id})
		return r, r.GetTaintedAuthority(), err
	},
	revoke: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: id})
		return r, r.GetRevokedAuthority(), err
	},
}

// witAuthorities are the calls about WIT authorities.
var witAuthorities = authorityKind{
	name: "wit", title: "WIT",
	show: func(ctx context.Context, c authorityClient) (authorityStates, error) {
		return c.GetWITAuthorityState(ctx, &localauthorityv1.GetWITAuthorityStateRequest{})
	},
	prepare: func(ctx context.Context, c authorityClient, _ string) (proto.Message, *authorityState, error) {
		r, err := c.PrepareWITAuthority(ctx, &localauthorityv1.PrepareWITAuthorityRequest{})
		return r, r.GetPreparedAuthority(), err
	},
	activate: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.ActivateWITAuthority(ctx, &localauthorityv1.ActivateWITAuthorityRequest{AuthorityId: id})
		return r, r.GetActivatedAuthority(), err
	},
	taint: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.TaintWITAuthority(ctx, &localauthorityv1.TaintWITAuthorityRequest{AuthorityId: id})
		return r, r.GetTaintedAuthority(), err
	},
	revoke: func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error) {
		r, err := c.RevokeWITAuthority(ctx, &localauthorityv1.RevokeWITAuthorityRequest{AuthorityId: id})
		return r, r.GetRevokedAuthority(), err
	},
}
