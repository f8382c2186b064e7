package svidapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Issuer signs; *ca.Authority is one.
type Issuer interface {
	IssueX509(ctx context.Context, now time.Time, req svid.X509Request) (*svid.X509SVID, error)
	IssueJWT(ctx context.Context, now time.Time, req svid.JWTRequest) (*svid.JWTSVID, error)
}

// Config of a Service. All fields are required but those that say otherwise.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Graph       *entitle.Graph
	// Fresh returns once Graph is as new as the store was at the call.
	Fresh  func(context.Context) error
	Issuer Issuer
	// DisableJWT refuses to sign JWT-SVIDs (default: false).
	DisableJWT bool
	Logger     *slog.Logger
	// Audit may be nil.
	Audit *audit.Log
}

// Service is spire.api.server.svid.v1.SVID. The methods that are not here are
// Unimplemented.
type Service struct {
	svidv1.UnimplementedSVIDServer

	cfg Config
}

// New returns a Service.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// maxBatch bounds one BatchNewX509SVID.
const maxBatch = 1000

// MintX509SVID signs for the SPIFFE ID and the DNS names of the CSR, which only
// an operator may choose, and only among those of workloads of this trust
// domain.
func (s *Service) MintX509SVID(ctx context.Context, req *svidv1.MintX509SVIDRequest) (*svidv1.MintX509SVIDResponse, error) {
	if len(req.GetCsr()) == 0 {
		return nil, rpcerr.New(codes.InvalidArgument, "missing CSR")
	}
	r, err := svid.ParseMintCSR(req.GetCsr())
	if err != nil {
		return nil, refused("malformed CSR", err)
	}
	r.TTL = time.Duration(req.GetTtl()) * time.Second

	done := s.cfg.Audit.Begin(ctx, event(ctx, "x509svid.mint", r.ID, ""))
	out, err := s.cfg.Issuer.IssueX509(ctx, time.Now(), r)
	if err != nil {
		done(err)
		return nil, refused("failed to sign X509-SVID", err)
	}
	done(nil, slog.String(telemetry.Serial, out.Serial), slog.Time(telemetry.NotAfter, out.NotAfter))
	return &svidv1.MintX509SVIDResponse{Svid: x509ToWire(r.ID, out)}, nil
}

// MintJWTSVID signs for the SPIFFE ID of the request, which only an operator may
// choose, and only among those of workloads of this trust domain.
func (s *Service) MintJWTSVID(ctx context.Context, req *svidv1.MintJWTSVIDRequest) (*svidv1.MintJWTSVIDResponse, error) {
	if s.cfg.DisableJWT {
		return nil, errJWTDisabled
	}
	id, err := s.workloadID(req.GetId())
	if err != nil {
		return nil, err
	}
	out, err := s.issueJWT(ctx, "jwtsvid.mint", svid.JWTRequest{
		ID: id, Audience: req.GetAudience(), TTL: time.Duration(req.GetTtl()) * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return &svidv1.MintJWTSVIDResponse{Svid: out}, nil
}

// NewJWTSVID signs for an entry of the agent that calls.
func (s *Service) NewJWTSVID(ctx context.Context, req *svidv1.NewJWTSVIDRequest) (*svidv1.NewJWTSVIDResponse, error) {
	if s.cfg.DisableJWT {
		return nil, errJWTDisabled
	}
	agent, err := callerID(ctx)
	if err != nil {
		return nil, err
	}
	e, err := s.entry(agent, req.GetEntryId(), s.catchUp(ctx))
	if err != nil {
		return nil, err
	}
	out, err := s.issueJWT(ctx, "jwtsvid.new", svid.JWTRequest{
		ID: e.SPIFFEID, Audience: req.GetAudience(), TTL: e.JWTSVIDTTL,
		IncludeJTI: e.Attributes != nil && e.Attributes.JWTSVIDIncludeJTI,
		EntryID:    e.ID, AgentID: agent,
	})
	if err != nil {
		return nil, err
	}
	return &svidv1.NewJWTSVIDResponse{Svid: out}, nil
}

func (s *Service) issueJWT(ctx context.Context, action string, r svid.JWTRequest) (*types.JWTSVID, error) {
	if len(r.Audience) == 0 {
		return nil, rpcerr.New(codes.InvalidArgument, "at least one audience is required")
	}
	done := s.cfg.Audit.Begin(ctx, event(ctx, action, r.ID, r.EntryID))
	out, err := s.cfg.Issuer.IssueJWT(ctx, time.Now(), r)
	if err != nil {
		done(err)
		return nil, refused("failed to sign JWT-SVID", err)
	}
	done(nil, slog.Time(telemetry.ExpiresAt, out.ExpiresAt))
	return &types.JWTSVID{
		Token: out.Token, Id: idToWire(r.ID), ExpiresAt: out.ExpiresAt.Unix(), IssuedAt: out.IssuedAt.Unix(),
	}, nil
}

// workloadID reads the SPIFFE ID of a workload of this trust domain.
func (s *Service) workloadID(wire *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := registry.IDFromWire("id", wire)
	if err != nil {
		return spiffeid.ID{}, rpcerr.New(codes.InvalidArgument, "invalid SPIFFE ID: %v", err)
	}
	rule := ""
	switch path := id.Path(); {
	case !id.MemberOf(s.cfg.TrustDomain):
		return spiffeid.ID{}, rpcerr.New(codes.InvalidArgument, "invalid SPIFFE ID: %q is not a member of trust domain %q", id, s.cfg.TrustDomain.Name())
	case path == "":
		rule = "path is empty"
	case path == reserved || strings.HasPrefix(path, reserved+"/"):
		rule = "path is in the reserved namespace"
	default:
		return id, nil
	}
	return spiffeid.ID{}, rpcerr.New(codes.InvalidArgument, "invalid SPIFFE ID: %q is not a workload in trust domain %q; %s", id, s.cfg.TrustDomain.Name(), rule)
}

// reserved is the path below which servers and agents have their SPIFFE IDs.
const reserved = "/spire"

// catchUp is Fresh, at most once for one call and all its items.
func (s *Service) catchUp(ctx context.Context) func() error {
	return sync.OnceValue(func() error { return s.cfg.Fresh(ctx) })
}

// entry is the entry, if the agent may have it now. Whether it does not exist or
// is another agent's is not told. The agent may have heard of it from another
// server, so that none is refused before this one has caught up.
func (s *Service) entry(agent spiffeid.ID, entryID string, catchUp func() error) (*registry.Entry, error) {
	if e, ok := s.cfg.Graph.Lookup(agent, entryID, time.Now()); ok {
		return e.Entry(), nil
	}
	if err := catchUp(); err != nil {
		return nil, err
	}
	if e, ok := s.cfg.Graph.Lookup(agent, entryID, time.Now()); ok {
		return e.Entry(), nil
	}
	return nil, errNoEntry
}

var errJWTDisabled = rpcerr.New(codes.Unimplemented, "JWT functionality is disabled")

var errNoEntry = rpcerr.New(codes.NotFound, "entry not found or not authorized")

// refused puts SPIRE's words before what package svid has to say of a request.
// Other errors are not the caller's to know.
func refused(doing string, err error) error {
	if errors.Is(err, svid.ErrInvalid) || errors.Is(err, svid.ErrRefused) {
		return rpcerr.New(codes.InvalidArgument, "%s: %v", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// callerID is the agent that calls.
func callerID(ctx context.Context) (spiffeid.ID, error) {
	caller, ok := policy.FromContext(ctx)
	if !ok || !caller.Is(policy.Agent) {
		return spiffeid.ID{}, rpcerr.New(codes.PermissionDenied, "the caller is not an agent")
	}
	return caller.ID, nil
}

// event is an audit event of the call's caller.
func event(ctx context.Context, action string, id spiffeid.ID, entryID string) audit.Event {
	e := audit.Event{Action: action, Subject: id.String()}
	if c, ok := policy.FromContext(ctx); ok {
		e.CallerKind = c.Roles.String()
		if !c.ID.IsZero() {
			e.Caller = c.ID.String()
		}
	}
	if entryID != "" {
		e.Attrs = []slog.Attr{slog.String(telemetry.EntryID, entryID)}
	}
	return e
}

func x509ToWire(id spiffeid.ID, s *svid.X509SVID) *types.X509SVID {
	return &types.X509SVID{Id: idToWire(id), CertChain: s.Chain, ExpiresAt: s.NotAfter.Unix()}
}

func idToWire(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}
