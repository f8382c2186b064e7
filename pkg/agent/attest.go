package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/telemetry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// newProver makes the node attestor that is configured, or join_token if there is
// a token: as in SPIRE, a token goes before what the file says.
func newProver(c *Config) (node.Prover, error) {
	if c.Agent.JoinToken == "" && c.Agent.JoinTokenFile == "" {
		return one(c, typeNodeAttestor, provers)
	}
	token, err := c.joinToken()
	if err != nil {
		return nil, err
	}
	return jointoken.NewProver(token), nil
}

// nextSteps say what to do about a refused attestation, by method.
var nextSteps = map[string]string{
	jointoken.Name: "a join token is good for one agent and a short time, so make a new one with `credence-server token generate`",
	k8spsat.Name:   "the server's log has the reason; are cluster, the audience of the projected token and the pod's service account those that the server's k8s_psat has?",
	x509pop.Name:   "the server's log has the reason; is the certificate in certificate_path within its time and of an authority that the server's x509pop trusts?",
}

// ensureAttested attests when there is no SVID that could still be used. A
// refusal ends the agent, unless it has attested in this life by a method that
// may be used again: what is wrong can then be mended without it, and what it
// has given to workloads stays good meanwhile.
func (a *Agent) ensureAttested(ctx context.Context) error {
	own := a.identity.current.Load()
	if own != nil && time.Now().Before(own.notAfter()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := a.attest(ctx)
	switch {
	case err == nil:
		s := a.identity.current.Load()
		a.log.InfoContext(ctx, "attested", telemetry.AgentID, s.ID, telemetry.AttestationType, a.prover.Name(), telemetry.NotAfter, s.notAfter())
		return nil
	case errors.Is(err, ErrRefused) && !a.identity.reattests.Load(),
		untrusted(err) && own == nil:
		return fatal(err)
	}
	return err
}

// untrusted says whether no server can be verified, and none is merely away.
func untrusted(err error) bool {
	if e, ok := errors.AsType[*route.Error](err); ok {
		return e.All(errUntrusted)
	}
	return errors.Is(err, errUntrusted)
}

// attest gets an SVID by the node attestor. It returns ErrRefused (wrapped) when
// the same evidence, as it is, will not do; a ban is not one of those.
func (a *Agent) attest(ctx context.Context) error {
	l, err := a.dial(ctx, nil)
	if err != nil {
		return err
	}
	defer a.closing(ctx, l)
	if err = a.identity.attest(ctx, l.conn, a.prover); err == nil {
		return nil
	}
	said, isAnswer := errors.AsType[answer](err)
	switch {
	case errors.Is(err, jointoken.ErrNoToken):
		return noEvidence{err}
	case errors.Is(err, node.ErrRefused):
	case !isAnswer:
		return errors.New(err.Error()) // a status in it is not the server's
	case !final(said):
		return err
	}
	if step := nextSteps[a.prover.Name()]; step != "" {
		return fmt.Errorf("%w; %s: %w", ErrRefused, step, err)
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}

// noEvidence is an ErrRefused of which the server knows nothing.
type noEvidence struct{ error }

func (noEvidence) Is(target error) bool { return target == ErrRefused }

// final says whether the server's answer is that the evidence will not do. That
// the agent must attest again, or is banned, is not for here.
func final(said error) bool {
	if _, told := refusal(said); told {
		return false
	}
	switch status.Code(said) {
	case codes.PermissionDenied, codes.InvalidArgument, codes.Unauthenticated, codes.FailedPrecondition, codes.NotFound:
		return true
	}
	return false
}
