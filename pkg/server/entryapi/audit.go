package entryapi

import (
	"context"
	"log/slog"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Keys of the privileges that an entry is asked to give.
const (
	keyAdmin      = "admin"
	keyDownstream = "downstream"
)

// recorder writes the audit records of one batch: the intent of every item
// before anything is done, and its outcome after. Selectors are not recorded;
// they can be secrets of the workload.
type recorder struct {
	log  *audit.Log
	base audit.Event
	ends []func(error, ...slog.Attr)
}

// recorder returns the recorder of a batch of n items, which does nothing when
// no audit log is kept.
func (s *Service) recorder(ctx context.Context, action string, n int) *recorder {
	if s.cfg.Audit == nil {
		return &recorder{}
	}
	caller, _ := policy.FromContext(ctx)
	return &recorder{
		log:  s.cfg.Audit,
		base: audit.Event{Action: action, Caller: caller.String(), CallerKind: caller.Roles.String()},
		ends: make([]func(error, ...slog.Attr), n),
	}
}

func (r *recorder) begin(ctx context.Context, i int, m *types.Entry) {
	if r.log == nil {
		return
	}
	e := r.base
	e.Subject = m.GetId()
	if id := m.GetSpiffeId(); id != nil {
		e.Attrs = append(e.Attrs, slog.String(telemetry.SPIFFEID, "spiffe://"+id.GetTrustDomain()+id.GetPath()))
	}
	if id := m.GetParentId(); id != nil {
		e.Attrs = append(e.Attrs, slog.String(telemetry.ParentID, "spiffe://"+id.GetTrustDomain()+id.GetPath()))
	}
	if m.GetAdmin() {
		e.Attrs = append(e.Attrs, slog.Bool(keyAdmin, true))
	}
	if m.GetDownstream() {
		e.Attrs = append(e.Attrs, slog.Bool(keyDownstream, true))
	}
	r.ends[i] = r.log.Begin(ctx, e)
}

func (r *recorder) end(i int, err error, attrs ...slog.Attr) {
	if r.log != nil {
		r.ends[i](err, attrs...)
	}
}
