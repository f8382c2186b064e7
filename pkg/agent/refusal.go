package agent

import (
	"context"
	"errors"
	"strings"

	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Sentinel errors of Run, tested with errors.Is.
var (
	// ErrBanned is returned when the server has banned this agent.
	ErrBanned = errors.New("the server has banned this agent; lift the ban with `credence-server agent evict` and attest again")
	// ErrRefused is returned when the server refuses the attestation of an
	// agent that cannot attest again. One that can goes on trying.
	ErrRefused = errors.New("the server refuses to attest this agent")
)

// refusal reads the reason of a PermissionDenied, where it has one.
func refusal(err error) (types.PermissionDeniedDetails_Reason, bool) {
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.PermissionDenied {
		return 0, false
	}
	for _, d := range s.Details() {
		if p, ok := d.(*types.PermissionDeniedDetails); ok {
			return p.GetReason(), true
		}
	}
	// SPIRE's servers say so without details when a banned agent attests.
	if strings.HasSuffix(s.Message(), "agent is banned") {
		return types.PermissionDeniedDetails_AGENT_BANNED, true
	}
	return 0, false
}

// judge says what the end of a session means for what the agent holds.
func (a *Agent) judge(ctx context.Context, err error) error {
	reason, refused := refusal(err)
	if !refused {
		return err
	}
	switch reason {
	case types.PermissionDeniedDetails_AGENT_BANNED:
		a.cache.Wipe()
		return fatal(errors.Join(ErrBanned, a.identity.forget(ctx), a.state.remove()))
	case types.PermissionDeniedDetails_AGENT_NOT_ATTESTED:
		a.cache.Wipe()
		a.log.WarnContext(ctx, "the server has evicted this agent: attesting again")
		if err := errors.Join(a.identity.forget(ctx), a.state.remove()); err != nil {
			return fatal(err)
		}
	case types.PermissionDeniedDetails_AGENT_EXPIRED, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, types.PermissionDeniedDetails_AGENT_MUST_REATTEST:
		a.log.WarnContext(ctx, "the server wants this agent to attest again", telemetry.Reason, reason.String())
		if err := a.identity.forget(ctx); err != nil {
			return fatal(err)
		}
	case types.PermissionDeniedDetails_UNKNOWN:
	}
	return err
}
