package agentapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Issuer signs X509-SVIDs; *ca.Authority is one.
type Issuer interface {
	IssueX509(ctx context.Context, now time.Time, req svid.X509Request) (*svid.X509SVID, error)
}

// Config of a Service. All fields are required but those that say otherwise.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Registry    *registry.Registry
	Index       *registry.Index
	Issuer      Issuer
	// Verifiers are the node attestation methods that are allowed, by name.
	Verifiers map[string]node.Verifier
	// Fresh returns once Index is as new as the store was at the call, and
	// fails with store.ErrUnavailable when it does not get there.
	Fresh func(context.Context) error
	// AttestTimeout bounds one attestation from its first message to its
	// answer; default 30 s.
	AttestTimeout time.Duration
	Logger        *slog.Logger
	// Audit may be nil.
	Audit *audit.Log
}

// defaultAttestTimeout is the default of Config.AttestTimeout.
const defaultAttestTimeout = 30 * time.Second

// agentPath is where the SPIFFE IDs of agents are.
const agentPath = "/spire/agent/"

// maxVersion bounds an agent's version, in bytes, as SPIRE does.
const maxVersion = 255

// Service is spire.api.server.agent.v1.Agent.
type Service struct {
	agentv1.UnimplementedAgentServer

	cfg Config
	// attesting has the conversations of AttestAgent. Each ends with its call,
	// or soon after.
	attesting sync.WaitGroup
}

// New returns a Service.
func New(cfg Config) *Service {
	if cfg.AttestTimeout == 0 {
		cfg.AttestTimeout = defaultAttestTimeout
	}
	return &Service{cfg: cfg}
}

// Wait returns when nothing of the service runs any more. It is called after
// the gRPC server has stopped.
func (s *Service) Wait() { s.attesting.Wait() }

// RenewAgent issues the agent's next SVID. Its serial number is on disk before
// it is answered, and the one in use stays good until the next is used, so that
// a crash or a lost reply at any point locks nobody out (S31).
func (s *Service) RenewAgent(ctx context.Context, req *agentv1.RenewAgentRequest) (*agentv1.RenewAgentResponse, error) {
	id, err := callerID(ctx)
	if err != nil {
		return nil, err
	}
	// The interceptor has let the agent in; another server may have removed
	// it since.
	agent, err := s.cfg.Registry.LoadAgent(ctx, id)
	if err != nil {
		return nil, agentError(id, err)
	}
	if agent.CanReattest {
		return nil, rpcerr.Denied(types.PermissionDeniedDetails_AGENT_MUST_REATTEST, "agent must reattest instead of renew")
	}
	switch {
	case req.GetParams() == nil:
		return nil, rpcerr.New(codes.InvalidArgument, "params cannot be nil")
	case len(req.GetParams().GetCsr()) == 0:
		return nil, rpcerr.New(codes.InvalidArgument, "missing CSR")
	}
	key, err := svid.ParseCSR(req.GetParams().GetCsr())
	if err != nil {
		return nil, csrError(err)
	}

	done := s.cfg.Audit.Begin(ctx, event(ctx, "agent.renew", id.String()))
	out, err := s.cfg.Issuer.IssueX509(ctx, time.Now(), svid.X509Request{Kind: svid.Agent, ID: id, PublicKey: key, AgentID: id})
	if err == nil {
		err = s.update(ctx, id, func(a *registry.Agent) error {
			a.Issued(out.Serial, out.NotAfter)
			return nil
		})
	}
	done(err, issued(out)...)
	if err != nil {
		return nil, fmt.Errorf("renewing agent: %w", err)
	}
	return &agentv1.RenewAgentResponse{Svid: x509SVID(id, out)}, nil
}

// PostStatus remembers the agent's version.
func (s *Service) PostStatus(ctx context.Context, req *agentv1.PostStatusRequest) (*agentv1.PostStatusResponse, error) {
	id, err := callerID(ctx)
	if err != nil {
		return nil, err
	}
	version := req.GetAgentVersion()
	if len(version) > maxVersion {
		return nil, rpcerr.New(codes.InvalidArgument, "agent version is too long (max %d characters)", maxVersion)
	}
	if version != "" {
		if err := s.SetVersion(ctx, id, version); err != nil {
			return nil, err
		}
	}
	return &agentv1.PostStatusResponse{}, nil
}

// SetVersion remembers the version an agent says it has. Nothing is written when
// it is the one known.
func (s *Service) SetVersion(ctx context.Context, id spiffeid.ID, version string) error {
	if a, ok := s.cfg.Index.Agent(id); ok && a.Version == version {
		return nil
	}
	return s.update(ctx, id, func(a *registry.Agent) error {
		a.Version = version
		return nil
	})
}

// settleWait is how long the answer to a write waits for this server to see it
// too.
const settleWait = time.Second

// update changes an agent and gives this server's own view a moment to show it.
// The write stands whatever comes of that, and who asks for the agent waits for
// itself: also while the server loads, an agent attests.
func (s *Service) update(ctx context.Context, id spiffeid.ID, change func(*registry.Agent) error) error {
	agent, err := s.cfg.Registry.UpdateAgent(ctx, id, change)
	if err != nil {
		return agentError(id, err)
	}
	waiting, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = s.cfg.Index.WaitFor(waiting, agent.ModRevision)
	return nil
}

// callerID is the agent that calls.
func callerID(ctx context.Context) (spiffeid.ID, error) {
	caller, ok := policy.FromContext(ctx)
	if !ok || !caller.Is(policy.Agent) {
		return spiffeid.ID{}, rpcerr.New(codes.PermissionDenied, "the caller is not an agent")
	}
	return caller.ID, nil
}

// agentError says in SPIRE's words what the registry found out about an agent.
func agentError(id spiffeid.ID, err error) error {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return rpcerr.New(codes.NotFound, "agent not found")
	case errors.Is(err, registry.ErrBanned):
		return errBanned(id)
	}
	return err
}

func csrError(err error) error {
	if errors.Is(err, svid.ErrInvalid) || errors.Is(err, svid.ErrRefused) {
		return rpcerr.New(codes.InvalidArgument, "failed to parse CSR: %v", err)
	}
	return fmt.Errorf("parsing CSR: %w", err)
}

func x509SVID(id spiffeid.ID, s *svid.X509SVID) *types.X509SVID {
	return &types.X509SVID{Id: idToWire(id), CertChain: s.Chain, ExpiresAt: s.NotAfter.Unix()}
}

func idToWire(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}
