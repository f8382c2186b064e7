package workloadapi

import (
	"context"
	"errors"
	"time"

	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// FetchJWTSVID returns a JWT-SVID for each of the caller's identities, or for
// the one asked for (Workload API, 6.2.1).
func (s *Service) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (_ *workload.JWTSVIDResponse, err error) {
	const method = "FetchJWTSVID"
	defer s.metrics.call(method, time.Now(), &err)
	proc, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkAudience(req.GetAudience()); err != nil {
		return nil, err
	}
	var id spiffeid.ID
	if req.GetSpiffeId() != "" {
		if id, err = spiffeid.FromString(req.GetSpiffeId()); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "invalid requested SPIFFE ID: %v", err)
		}
	}
	selectors, _, err := s.attest(ctx, proc)
	if err != nil {
		return nil, err
	}
	if err := s.allow(method, selectors); err != nil {
		return nil, err
	}
	svids, err := s.cfg.Cache.FetchJWT(ctx, selectors, req.GetAudience(), id)
	if err != nil {
		return nil, s.refusal(ctx, method, proc, err)
	}
	resp := &workload.JWTSVIDResponse{Svids: make([]*workload.JWTSVID, 0, len(svids))}
	for _, v := range svids {
		resp.Svids = append(resp.Svids, &workload.JWTSVID{SpiffeId: v.SPIFFEID.String(), Svid: v.Token, Hint: v.Hint})
	}
	s.log.DebugContext(ctx, "sent", telemetry.Method, method, telemetry.PeerPID, proc.PID(), telemetry.Count, len(svids))
	return resp, nil
}

// checkAudience refuses what the server would, before it is asked.
func checkAudience(audience []string) error {
	if len(audience) > svid.MaxAudiences {
		return status.Errorf(codes.InvalidArgument, "%d audiences, at most %d are allowed", len(audience), svid.MaxAudiences)
	}
	empty := true
	for _, a := range audience {
		if len(a) > svid.MaxAudience {
			return status.Errorf(codes.InvalidArgument, "an audience of %d bytes, at most %d are allowed", len(a), svid.MaxAudience)
		}
		empty = empty && a == ""
	}
	if empty {
		return status.Error(codes.InvalidArgument, "audience must be specified")
	}
	return nil
}

// ValidateJWTSVID validates a JWT-SVID with the bundles the caller has, and our
// own if it has no identity, as SPIRE does (Workload API, 6.2.3).
func (s *Service) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (_ *workload.ValidateJWTSVIDResponse, err error) {
	const method = "ValidateJWTSVID"
	defer s.metrics.call(method, time.Now(), &err)
	proc, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case req.GetAudience() == "":
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	case req.GetSvid() == "":
		return nil, status.Error(codes.InvalidArgument, "svid must be specified")
	}
	selectors, _, err := s.attest(ctx, proc)
	if err != nil {
		return nil, err
	}
	sub := s.cfg.Cache.Subscribe(selectors)
	defer sub.Close()
	grant, err := sub.AwaitSync(ctx)
	if err != nil && !hasBundle(grant) {
		return nil, s.refusal(ctx, method, proc, err)
	}
	resp, err := s.validate(time.Now(), req, grant)
	if err != nil {
		s.log.DebugContext(ctx, "refused a JWT-SVID", telemetry.PeerPID, proc.PID(), telemetry.Err, err)
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return resp, nil
}

// validate is the part that takes foreign bytes. Its error never holds the token.
func (s *Service) validate(now time.Time, req *workload.ValidateJWTSVIDRequest, bundles jwtbundle.Source) (*workload.ValidateJWTSVIDResponse, error) {
	claims, err := s.tokens.validate(now, req.GetSvid(), bundles, req.GetAudience())
	if err != nil {
		return nil, err
	}
	said, err := s.claims(claims)
	if err != nil {
		return nil, errors.New("the token's claims cannot be reported: a value is not of JSON or not UTF-8")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: claims.ID.String(), Claims: said}, nil
}

// claims are those reported to the caller. aud is always a list, although a JWT
// may have a single string in its place (RFC 7519, 4.1.3).
func (s *Service) claims(c *svid.JWTClaims) (*structpb.Struct, error) {
	said := make(map[string]any, len(c.All))
	for name, value := range c.All {
		if c.ID.MemberOf(s.cfg.TrustDomain) || s.foreign[name] {
			said[name] = value
		}
	}
	audience := make([]any, 0, len(c.Audience))
	for _, a := range c.Audience {
		audience = append(audience, a)
	}
	said["aud"] = audience
	return structpb.NewStruct(said)
}
