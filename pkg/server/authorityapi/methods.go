package authorityapi

import (
	"context"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// GetX509AuthorityState returns the X.509 authorities of this server, or
// Unavailable before there is an active one.
func (s *Service) GetX509AuthorityState(context.Context, *localauthorityv1.GetX509AuthorityStateRequest) (*localauthorityv1.GetX509AuthorityStateResponse, error) {
	st, err := show(s.x509().line)
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.GetX509AuthorityStateResponse{Active: st.active, Prepared: st.prepared, Old: st.old}, nil
}

// PrepareX509Authority makes another X.509 authority and publishes it, in place
// of one that was prepared before.
func (s *Service) PrepareX509Authority(ctx context.Context, _ *localauthorityv1.PrepareX509AuthorityRequest) (*localauthorityv1.PrepareX509AuthorityResponse, error) {
	state, err := s.prepare(ctx, s.x509())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.PrepareX509AuthorityResponse{PreparedAuthority: state}, nil
}

// ActivateX509Authority has the prepared X.509 authority sign from now on. It is
// FailedPrecondition when that one may not sign, naming the rule.
func (s *Service) ActivateX509Authority(ctx context.Context, req *localauthorityv1.ActivateX509AuthorityRequest) (*localauthorityv1.ActivateX509AuthorityResponse, error) {
	state, err := s.activate(ctx, s.x509(), req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.ActivateX509AuthorityResponse{ActivatedAuthority: state}, nil
}

// TaintX509Authority has everything replaced that an old X.509 authority signed.
func (s *Service) TaintX509Authority(ctx context.Context, req *localauthorityv1.TaintX509AuthorityRequest) (*localauthorityv1.TaintX509AuthorityResponse, error) {
	state, err := s.taint(ctx, s.x509(), req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.TaintX509AuthorityResponse{TaintedAuthority: state}, nil
}

// RevokeX509Authority removes an old, tainted X.509 authority from the bundle.
func (s *Service) RevokeX509Authority(ctx context.Context, req *localauthorityv1.RevokeX509AuthorityRequest) (*localauthorityv1.RevokeX509AuthorityResponse, error) {
	state, err := s.revoke(ctx, s.x509(), req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.RevokeX509AuthorityResponse{RevokedAuthority: named(state)}, nil
}

// GetJWTAuthorityState returns the JWT authorities of this server, or
// Unavailable before there is an active one.
func (s *Service) GetJWTAuthorityState(context.Context, *localauthorityv1.GetJWTAuthorityStateRequest) (*localauthorityv1.GetJWTAuthorityStateResponse, error) {
	k, err := s.jwt()
	if err != nil {
		return nil, err
	}
	st, err := show(k.line)
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.GetJWTAuthorityStateResponse{Active: st.active, Prepared: st.prepared, Old: st.old}, nil
}

// PrepareJWTAuthority makes another JWT authority and publishes it, in place of
// one that was prepared before.
func (s *Service) PrepareJWTAuthority(ctx context.Context, _ *localauthorityv1.PrepareJWTAuthorityRequest) (*localauthorityv1.PrepareJWTAuthorityResponse, error) {
	k, err := s.jwt()
	if err != nil {
		return nil, err
	}
	state, err := s.prepare(ctx, k)
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.PrepareJWTAuthorityResponse{PreparedAuthority: state}, nil
}

// ActivateJWTAuthority has the prepared JWT authority sign from now on. It is
// FailedPrecondition when that one may not sign, naming the rule.
func (s *Service) ActivateJWTAuthority(ctx context.Context, req *localauthorityv1.ActivateJWTAuthorityRequest) (*localauthorityv1.ActivateJWTAuthorityResponse, error) {
	k, err := s.jwt()
	if err != nil {
		return nil, err
	}
	state, err := s.activate(ctx, k, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.ActivateJWTAuthorityResponse{ActivatedAuthority: state}, nil
}

// TaintJWTAuthority has the tokens that an old JWT authority signed thrown away
// by all who keep them.
func (s *Service) TaintJWTAuthority(ctx context.Context, req *localauthorityv1.TaintJWTAuthorityRequest) (*localauthorityv1.TaintJWTAuthorityResponse, error) {
	k, err := s.jwt()
	if err != nil {
		return nil, err
	}
	state, err := s.taint(ctx, k, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.TaintJWTAuthorityResponse{TaintedAuthority: named(state)}, nil
}

// RevokeJWTAuthority removes a tainted JWT authority from the bundle.
func (s *Service) RevokeJWTAuthority(ctx context.Context, req *localauthorityv1.RevokeJWTAuthorityRequest) (*localauthorityv1.RevokeJWTAuthorityResponse, error) {
	k, err := s.jwt()
	if err != nil {
		return nil, err
	}
	state, err := s.revoke(ctx, k, req.GetAuthorityId())
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.RevokeJWTAuthorityResponse{RevokedAuthority: named(state)}, nil
}

// What this server does not have. The texts begin as SPIRE's do.
var (
	errNoUpstream = rpcerr.New(codes.FailedPrecondition, "upstream authority is not configured: "+
		"no authority of another server in the bundle has this subject key ID, and those of this server are for TaintX509Authority and RevokeX509Authority")
	errNoWIT = rpcerr.New(codes.Unimplemented, "WIT-SVID functionality is not yet implemented: "+
		"this server has X.509 and JWT authorities only, which have calls of their own")
)

// GetWITAuthorityState is Unimplemented: there are no WIT authorities.
func (s *Service) GetWITAuthorityState(context.Context, *localauthorityv1.GetWITAuthorityStateRequest) (*localauthorityv1.GetWITAuthorityStateResponse, error) {
	return nil, errNoWIT
}

// PrepareWITAuthority is Unimplemented: there are no WIT authorities.
func (s *Service) PrepareWITAuthority(context.Context, *localauthorityv1.PrepareWITAuthorityRequest) (*localauthorityv1.PrepareWITAuthorityResponse, error) {
	return nil, errNoWIT
}

// ActivateWITAuthority is Unimplemented: there are no WIT authorities.
func (s *Service) ActivateWITAuthority(context.Context, *localauthorityv1.ActivateWITAuthorityRequest) (*localauthorityv1.ActivateWITAuthorityResponse, error) {
	return nil, errNoWIT
}

// TaintWITAuthority is Unimplemented: there are no WIT authorities.
func (s *Service) TaintWITAuthority(context.Context, *localauthorityv1.TaintWITAuthorityRequest) (*localauthorityv1.TaintWITAuthorityResponse, error) {
	return nil, errNoWIT
}

// RevokeWITAuthority is Unimplemented: there are no WIT authorities.
func (s *Service) RevokeWITAuthority(context.Context, *localauthorityv1.RevokeWITAuthorityRequest) (*localauthorityv1.RevokeWITAuthorityResponse, error) {
	return nil, errNoWIT
}
