package authorityapi

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

// settleWait is how long the answer to a change waits for this server to see it
// too.
const settleWait = time.Second

// Config of a Service. All but Audit is required.
type Config struct {
	Authority *ca.Authority
	// DisableJWT refuses all calls about JWT authorities.
	DisableJWT bool
	// Fresh returns once this server shows everybody what was committed before
	// the call.
	Fresh func(context.Context) error
	// UpdateBundle changes the bundle of this server's trust domain.
	UpdateBundle func(context.Context, func(*registry.Bundle) error) (*registry.Bundle, error)
	// Agent is an attested agent as this server knows it.
	Agent  func(spiffeid.ID) (*registry.Agent, bool)
	Logger *slog.Logger
	// Audit receives every change asked for; nil: nothing is recorded.
	Audit *audit.Log
}

// Service is localauthority.v1. Who may call was decided before.
type Service struct {
	localauthorityv1.UnsafeLocalAuthorityServer
	cfg Config
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// shown is the authorities of a kind as SPIRE has them: of the old ones, the one
// that signed last.
type shown struct {
	active, prepared, old *localauthorityv1.AuthorityState
}

func show(line ca.Line) (shown, error) {
	var s shown
	for _, v := range line.State() {
		state := &localauthorityv1.AuthorityState{AuthorityId: v.ID, ExpiresAt: v.NotAfter.Unix()}
		switch {
		case v.State == "active":
			s.active = state
		case v.State == "prepared":
			s.prepared = state
		case v.State == "old" && s.old == nil:
			s.old = state
		}
	}
	if s.active == nil {
		return s, errInitializing
	}
	return s, nil
}

var (
	errInitializing = rpcerr.New(codes.Unavailable, "server is initializing")
	errNoID         = rpcerr.New(codes.InvalidArgument, "no authority ID provided")
	errUnexpectedID = rpcerr.New(codes.InvalidArgument, "unexpected authority ID")
	errJWTDisabled  = rpcerr.New(codes.Unimplemented, "JWT functionality is disabled")
)

// kind is what the calls about one kind of authority differ in.
type kind struct {
	line ca.Line
	// name is as in SPIRE's messages; action as in ours.
	name, action string
	words        words
}

// words are SPIRE's texts that differ by kind.
type words struct {
	tainted, untainted string
	// goneTaint and goneRevoke are of an authority that is not in the bundle.
	goneTaint, goneRevoke string
	// revokeUnknown and revokePrepared are why an authority cannot be revoked.
	revokeUnknown, revokePrepared string
}

func (s *Service) x509() kind {
	return kind{line: s.cfg.Authority.X509(), name: "X.509", action: "x509authority", words: words{
		tainted:        "root CA is already tainted",
		untainted:      "it is not possible to revoke an untainted root CA",
		goneTaint:      "no ca found with provided subject key ID",
		goneRevoke:     "no root CA found with provided subject key ID",
		revokeUnknown:  "only Old local authority can be revoked",
		revokePrepared: "only Old local authority can be revoked",
	}}
}

func (s *Service) jwt() (kind, error) {
	if s.cfg.DisableJWT {
		return kind{}, errJWTDisabled
	}
	return kind{line: s.cfg.Authority.JWT(), name: "JWT", action: "jwtauthority", words: words{
		tainted:        "key is already tainted",
		untainted:      "it is not possible to revoke an untainted key",
		goneTaint:      "no JWT Key found with provided key ID",
		goneRevoke:     "no JWT Key found with provided key ID",
		revokeUnknown:  "no JWT authority found with provided authority ID",
		revokePrepared: "unable to use a prepared key",
	}}, nil
}

// change carries out what was asked for, between two audit records.
func (s *Service) change(ctx context.Context, action, id string, do func() (ca.View, error)) (ca.View, error) {
	e := audit.Event{Action: action, Subject: id}
	if c, ok := policy.FromContext(ctx); ok {
		e.Caller, e.CallerKind = c.String(), c.Roles.String()
	}
	end := s.cfg.Audit.Begin(ctx, e)
	v, err := do()
	if err != nil {
		end(err)
		return v, err
	}
	end(nil, slog.String(telemetry.AuthorityID, v.ID), slog.Time(telemetry.NotAfter, v.NotAfter))
	// So that what the client does next finds it done everywhere. The change
	// stands whatever comes of that.
	waiting, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = s.cfg.Fresh(waiting)
	return v, nil
}

func (s *Service) prepare(ctx context.Context, k kind) (*localauthorityv1.AuthorityState, error) {
	v, err := s.change(ctx, k.action+".prepare", "", func() (ca.View, error) {
		v, err := k.line.Prepare(ctx)
		return v, unready(rpcerr.Prefix(err, "failed to prepare "+k.name+" authority"), err)
	})
	return toWire(v, err)
}

func (s *Service) activate(ctx context.Context, k kind, id string) (*localauthorityv1.AuthorityState, error) {
	v, err := s.change(ctx, k.action+".activate", id, func() (ca.View, error) {
		if id == "" {
			return ca.View{}, errNoID
		}
		v, err := k.line.Activate(ctx, id)
		return v, k.activation(err)
	})
	return toWire(v, err)
}

// activation is an error of Activate for the client.
func (k kind) activation(err error) error {
	refusal, ok := errors.AsType[*ca.Refusal](err)
	switch {
	case !ok:
		return unready(rpcerr.Prefix(err, "failed to activate "+k.name+" authority"), err)
	case refusal.Rule == ca.KnownAuthority || refusal.State == "ACTIVE":
		return errUnexpectedID
	case refusal.Rule == ca.InState:
		return rpcerr.New(codes.Internal, "only Prepared authorities can be activated: unsupported local authority status: %s", refusal.State)
	default:
		return rpcerr.New(codes.FailedPrecondition, "%s", refusal.Error())
	}
}

func (s *Service) taint(ctx context.Context, k kind, id string) (*localauthorityv1.AuthorityState, error) {
	v, err := s.change(ctx, k.action+".taint", id, func() (ca.View, error) {
		if id == "" {
			return ca.View{}, errNoID
		}
		v, err := k.line.Taint(ctx, id)
		return v, k.tainting(err)
	})
	return toWire(v, err)
}

// tainting is an error of Taint for the client.
func (k kind) tainting(err error) error {
	doing := "failed to taint " + k.name + " authority"
	refusal, ok := errors.AsType[*ca.Refusal](err)
	switch {
	case !ok:
		return unready(rpcerr.Prefix(err, doing), err)
	case refusal.Rule == ca.NotYetTainted:
		return rpcerr.New(codes.Internal, "%s: %s", doing, k.words.tainted)
	case refusal.Rule == ca.OwnerAway:
		return rpcerr.New(codes.FailedPrecondition, "%s: %s", doing, refusal.Error())
	case refusal.Rule == ca.Published:
		return rpcerr.New(codes.Internal, "%s: %s", doing, k.words.goneTaint)
	case refusal.State == "ACTIVE":
		return rpcerr.New(codes.InvalidArgument, "unable to taint current local authority")
	case refusal.Rule == ca.InState:
		return rpcerr.New(codes.InvalidArgument, "only Old local authorities can be tainted: unsupported local authority status: %s", refusal.State)
	default:
		return errUnexpectedID
	}
}

func (s *Service) revoke(ctx context.Context, k kind, id string) (*localauthorityv1.AuthorityState, error) {
	v, err := s.change(ctx, k.action+".revoke", id, func() (ca.View, error) {
		if id == "" {
			return ca.View{}, rpcerr.New(codes.InvalidArgument, "invalid authority ID: no authority ID provided")
		}
		v, err := k.line.Revoke(ctx, id)
		return v, k.revocation(err)
	})
	if err == nil {
		s.warnOfStranded(ctx, id)
	}
	return toWire(v, err)
}

// warnOfStranded counts the agents that did not renew in time, as far as this
// server knows since it started: what they show is not accepted any more.
func (s *Service) warnOfStranded(ctx context.Context, authority string) {
	held := map[spiffeid.ID]map[string]bool{} // serials of an agent's own SVIDs
	s.cfg.Authority.Issued(time.Now(), func(i ca.Issued) bool {
		if i.AuthorityID != authority || i.SPIFFEID != i.AgentID {
			return false
		}
		if id, err := spiffeid.FromString(i.AgentID); err == nil {
			if held[id] == nil {
				held[id] = map[string]bool{}
			}
			held[id][i.Serial] = true
		}
		return false
	})
	stranded := 0
	for id, serials := range held {
		a, ok := s.cfg.Agent(id)
		if ok && serials[a.Serial] && (a.NextSerial == "" || serials[a.NextSerial]) {
			stranded++
		}
	}
	if stranded > 0 {
		s.cfg.Logger.WarnContext(ctx, "agents hold no SVID but of the revoked authority: they must attest again",
			telemetry.AuthorityID, authority, telemetry.Count, stranded)
	}
}

// revocation is an error of Revoke for the client.
func (k kind) revocation(err error) error {
	doing, invalid := "failed to revoke "+k.name+" authority", "invalid authority ID"
	refusal, ok := errors.AsType[*ca.Refusal](err)
	switch {
	case !ok:
		return unready(rpcerr.Prefix(err, doing), err)
	case refusal.Rule == ca.Tainted:
		return rpcerr.New(codes.Internal, "%s: %s", doing, k.words.untainted)
	case refusal.Rule == ca.OwnerAway:
		return rpcerr.New(codes.FailedPrecondition, "%s: %s", doing, refusal.Error())
	case refusal.Rule == ca.Published:
		return rpcerr.New(codes.Internal, "%s: %s", doing, k.words.goneRevoke)
	case refusal.State == "ACTIVE":
		return rpcerr.New(codes.InvalidArgument, "%s: unable to use current authority", invalid)
	case refusal.Rule == ca.InState:
		return rpcerr.New(codes.InvalidArgument, "%s: %s", invalid, k.words.revokePrepared)
	default:
		return rpcerr.New(codes.InvalidArgument, "%s: %s", invalid, k.words.revokeUnknown)
	}
}

// unready is what the client is told of err: that the server is starting, or
// else told.
func unready(told, err error) error {
	if errors.Is(err, ca.ErrNotReady) {
		return rpcerr.Hide(err, codes.Unavailable, errInitializing.Message)
	}
	return told
}

func toWire(v ca.View, err error) (*localauthorityv1.AuthorityState, error) {
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.AuthorityState{AuthorityId: v.ID, ExpiresAt: v.NotAfter.Unix()}, nil
}

// named is the state of which SPIRE gives the ID only.
func named(state *localauthorityv1.AuthorityState) *localauthorityv1.AuthorityState {
	return &localauthorityv1.AuthorityState{AuthorityId: state.GetAuthorityId()}
}
