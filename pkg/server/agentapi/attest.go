package agentapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// AttestAgent lets an agent in, or not. The caller is a stranger: what it sends
// is bounded in size, rounds and time before a method sees it (S07), and a
// refusal tells the caller little and the log all.
func (s *Service) AttestAgent(stream agentv1.Agent_AttestAgentServer) error {
	ctx, cancel := context.WithTimeoutCause(stream.Context(), s.cfg.AttestTimeout, errAttestTimeout)
	defer cancel()
	// Sending and receiving block for as long as the caller pleases, so they
	// are done beside this call: when it returns, gRPC ends them.
	done := make(chan error, 1)
	s.attesting.Go(func() { done <- s.converse(ctx, stream) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Service) converse(ctx context.Context, stream agentv1.Agent_AttestAgentServer) (err error) {
	defer rpcerr.Recover(&err)
	result, err := s.attest(ctx, &exchange{stream: stream})
	if err != nil {
		return err
	}
	if err := stream.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Result_{Result: result}}); err != nil {
		return fmt.Errorf("sending the result of an attestation: %w", err)
	}
	return nil
}

var errAttestTimeout = rpcerr.New(codes.DeadlineExceeded, "attestation took too long")

func (s *Service) attest(ctx context.Context, e *exchange) (*agentv1.AttestAgentResponse_Result, error) {
	// 1. What is asked for, and by which key.
	req, err := e.next()
	if err != nil {
		return nil, err
	}
	params := req.GetParams()
	if err := checkParams(params); err != nil {
		return nil, err
	}
	method := params.GetData().GetType()
	verifier := s.cfg.Verifiers[method]
	if verifier == nil {
		return nil, rpcerr.New(codes.FailedPrecondition, "error getting node attestor: could not find node attestor type %q", method)
	}
	key, err := svid.ParseCSR(params.GetParams().GetCsr())
	if err != nil {
		return nil, csrError(err)
	}
	// 2. Is it who it says?
	found, err := verifier.Verify(ctx, node.Attempt{
		TrustDomain: s.cfg.TrustDomain,
		Payload:     params.GetData().GetPayload(),
		PublicKey:   key,
		PeerIP:      peerIP(ctx),
		Challenge:   e.challenge,
	})
	if err == nil {
		err = s.checkResult(method, found)
	}
	if err != nil {
		s.cfg.Audit.Record(ctx, attempt(ctx, method, ""), err)
		return nil, verifyError(ctx, err)
	}
	// 3. Let it in. A join token is part of the agent's ID and is nothing for
	// a log before it is spent (S22).
	subject := found.AgentID.String()
	if found.JoinToken != "" {
		subject = ""
	}
	done := s.cfg.Audit.Begin(ctx, attempt(ctx, method, subject))
	out, err := s.admit(ctx, method, found, key)
	if err != nil {
		done(err)
		return nil, admitError(err)
	}
	done(nil, append(issued(out), slog.String(telemetry.AgentID, found.AgentID.String()))...)
	return &agentv1.AttestAgentResponse_Result{Svid: x509SVID(found.AgentID, out), Reattestable: found.CanReattest}, nil
}

// peerIP is where the call comes from; invalid where it is no IP address.
func peerIP(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	from, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

// admit records the agent, with the join token if there is one, then signs, then
// records the serial number. A crash in between leaves an agent without an SVID,
// which may come again with the same evidence and, for a join token, the same
// key.
func (s *Service) admit(ctx context.Context, method string, found node.Result, key any) (*svid.X509SVID, error) {
	pkix, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the agent's public key: %w", err)
	}
	id := found.AgentID
	if _, err := s.cfg.Registry.AttestAgent(ctx, &registry.Agent{
		ID: id, AttestationType: method, Selectors: found.Selectors, CanReattest: found.CanReattest,
	}, found.JoinToken, pkix); err != nil {
		return nil, err
	}
	out, err := s.cfg.Issuer.IssueX509(ctx, time.Now(), svid.X509Request{Kind: svid.Agent, ID: id, PublicKey: key, AgentID: id})
	if err != nil {
		return nil, fmt.Errorf("issuing the agent's SVID: %w", err)
	}
	return out, s.update(ctx, id, func(a *registry.Agent) error {
		if a.Serial == "" {
			a.Serial, a.NotAfter = out.Serial, out.NotAfter
			return nil
		}
		// An agent that attests again keeps the SVID it has until it uses
		// the new one, as if it had renewed.
		a.Issued(out.Serial, out.NotAfter)
		return nil
	})
}

// checkResult holds a verifier to its contract: a method cannot name agents of
// another method or trust domain, nor give selectors that are not its own.
func (s *Service) checkResult(method string, r node.Result) error {
	if !r.AgentID.MemberOf(s.cfg.TrustDomain) || !strings.HasPrefix(r.AgentID.Path(), agentPath+method+"/") {
		return fmt.Errorf("node attestor %q named the agent %q, which is not below %s%s/ of %q",
			method, r.AgentID, agentPath, method, s.cfg.TrustDomain.Name())
	}
	for _, sel := range r.Selectors {
		if sel.Type != method {
			return fmt.Errorf("node attestor %q gave a selector of type %q", method, sel.Type)
		}
	}
	agent := registry.Agent{ID: r.AgentID, AttestationType: method, Selectors: r.Selectors}
	return agent.Validate(s.cfg.TrustDomain)
}

// maxMethod bounds the name of an attestation method, in bytes.
const maxMethod = 255

func checkParams(p *agentv1.AttestAgentRequest_Params) error {
	missing := ""
	switch {
	case p == nil:
		missing = "params"
	case p.GetData() == nil:
		missing = "attestation data"
	case p.GetParams() == nil:
		missing = "X509-SVID parameters"
	case len(p.GetParams().GetCsr()) == 0:
		missing = "CSR"
	case p.GetData().GetType() == "":
		missing = "attestation data type"
	case len(p.GetData().GetType()) > maxMethod:
		// It is neither sent back nor logged.
		return rpcerr.New(codes.InvalidArgument, "malformed param: attestation data type of %d bytes is longer than %d",
			len(p.GetData().GetType()), maxMethod)
	case len(p.GetData().GetPayload()) == 0:
		missing = "attestation data payload"
	case len(p.GetData().GetPayload()) > node.MaxMessage:
		return rpcerr.New(codes.InvalidArgument, "malformed param: attestation data payload of %d bytes is longer than %d",
			len(p.GetData().GetPayload()), node.MaxMessage)
	default:
		return nil
	}
	return rpcerr.New(codes.InvalidArgument, "malformed param: missing %s", missing)
}

// verifyError is what a stranger may know of why its evidence is not taken.
func verifyError(ctx context.Context, err error) error {
	var e *rpcerr.Error
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &e):
		return err
	case errors.Is(err, node.ErrMalformed):
		return rpcerr.Hide(err, codes.InvalidArgument, "failed to attest: malformed attestation message")
	case errors.Is(err, node.ErrRefused):
		return rpcerr.Hide(err, codes.PermissionDenied, "failed to attest: the evidence was refused")
	}
	return rpcerr.Hide(err, codes.Internal, "failed to attest")
}

// admitError says in SPIRE's words why a verified agent is not let in.
func admitError(err error) error {
	switch {
	case errors.Is(err, registry.ErrTokenExpired):
		return rpcerr.New(codes.InvalidArgument, "join token expired")
	case errors.Is(err, registry.ErrTokenRefused):
		return rpcerr.Hide(err, codes.InvalidArgument, "failed to attest: join token does not exist or has already been used")
	case errors.Is(err, registry.ErrBanned):
		return rpcerr.Denied(types.PermissionDeniedDetails_AGENT_BANNED, "failed to attest: agent is banned")
	case errors.Is(err, registry.ErrEvidenceUsed):
		return rpcerr.New(codes.PermissionDenied, "failed to attest: %v", registry.ErrEvidenceUsed)
	}
	return fmt.Errorf("admitting an agent: %w", err)
}

// exchange is the conversation of one attestation.
type exchange struct {
	stream agentv1.Agent_AttestAgentServer
	rounds int
}

func (e *exchange) next() (*agentv1.AttestAgentRequest, error) {
	req, err := e.stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, rpcerr.New(codes.InvalidArgument, "failed to receive request from stream: it ended before the attestation did")
	}
	return req, err
}

// challenge is node.Attempt.Challenge.
func (e *exchange) challenge(_ context.Context, challenge []byte) ([]byte, error) {
	if e.rounds++; e.rounds > node.MaxRounds {
		return nil, fmt.Errorf("%w: more than %d challenges", node.ErrRefused, node.MaxRounds)
	}
	if err := e.stream.Send(&agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Challenge{Challenge: challenge}}); err != nil {
		return nil, fmt.Errorf("sending a challenge: %w", err)
	}
	req, err := e.next()
	if err != nil {
		return nil, err
	}
	answer, ok := req.GetStep().(*agentv1.AttestAgentRequest_ChallengeResponse)
	switch {
	case !ok:
		return nil, rpcerr.New(codes.InvalidArgument, "malformed param: a challenge must be answered by a challenge response")
	case len(answer.ChallengeResponse) > node.MaxMessage:
		return nil, rpcerr.New(codes.InvalidArgument, "malformed param: challenge response of %d bytes is longer than %d",
			len(answer.ChallengeResponse), node.MaxMessage)
	}
	return answer.ChallengeResponse, nil
}
