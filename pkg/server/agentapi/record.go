package agentapi

import (
	"context"
	"log/slog"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
	"google.golang.org/grpc/peer"
)

// event is an audit event of the call's caller.
func event(ctx context.Context, action, subject string) audit.Event {
	e := audit.Event{Action: action, Subject: subject}
	if c, ok := policy.FromContext(ctx); ok {
		e.CallerKind = c.Roles.String()
		if !c.ID.IsZero() {
			e.Caller = c.ID.String()
		}
	}
	return e
}

// attempt is an audit event of a stranger's attestation.
func attempt(ctx context.Context, method, subject string) audit.Event {
	e := audit.Event{
		Action: "agent.attest", CallerKind: "anyone", Subject: subject,
		Attrs: []slog.Attr{slog.String(telemetry.AttestationType, method)},
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		e.Attrs = append(e.Attrs, slog.String(telemetry.PeerAddr, p.Addr.String()))
	}
	return e
}

// issued is what the outcome of an issuance adds to its record.
func issued(s *svid.X509SVID) []slog.Attr {
	if s == nil {
		return nil
	}
	return []slog.Attr{slog.String(telemetry.Serial, s.Serial), slog.Time(telemetry.NotAfter, s.NotAfter)}
}
