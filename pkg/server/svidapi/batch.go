package svidapi

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// BatchNewX509SVID signs for entries of the agent that calls, each item with a
// status of its own, in the order of the request.
func (s *Service) BatchNewX509SVID(ctx context.Context, req *svidv1.BatchNewX509SVIDRequest) (*svidv1.BatchNewX509SVIDResponse, error) {
	agent, err := callerID(ctx)
	if err != nil {
		return nil, err
	}
	params := req.GetParams()
	switch {
	case len(params) == 0:
		return nil, rpcerr.New(codes.InvalidArgument, "missing parameters")
	case len(params) > maxBatch:
		return nil, rpcerr.New(codes.InvalidArgument, "params: %d items, at most %d are allowed: split them", len(params), maxBatch)
	}
	results := make([]*svidv1.BatchNewX509SVIDResponse_Result, len(params))
	catchUp := s.catchUp(ctx)
	each(len(params), func(i int) { results[i] = s.newX509(ctx, agent, params[i], catchUp) })
	return &svidv1.BatchNewX509SVIDResponse{Results: results}, nil
}

// each calls f for 0 to n-1, on as many processors as there are when there is
// enough to do for each of them, and returns when all calls have.
func each(n int, f func(int)) {
	const enough = 4
	workers := min(runtime.GOMAXPROCS(0), n/enough)
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	var g sync.WaitGroup
	for range workers - 1 {
		g.Go(work)
	}
	work()
	g.Wait()
}

func (s *Service) newX509(ctx context.Context, agent spiffeid.ID, p *svidv1.NewX509SVIDParams, catchUp func() error) *svidv1.BatchNewX509SVIDResponse_Result {
	out, err := s.issueX509(ctx, agent, p, catchUp)
	return &svidv1.BatchNewX509SVIDResponse_Result{Status: rpcerr.Item(ctx, s.cfg.Logger, err), Svid: out}
}

func (s *Service) issueX509(ctx context.Context, agent spiffeid.ID, p *svidv1.NewX509SVIDParams, catchUp func() error) (_ *types.X509SVID, err error) {
	defer rpcerr.Recover(&err)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case p.GetEntryId() == "":
		return nil, rpcerr.New(codes.InvalidArgument, "missing entry ID")
	case len(p.GetCsr()) == 0:
		return nil, rpcerr.New(codes.InvalidArgument, "missing CSR")
	}
	e, err := s.entry(agent, p.GetEntryId(), catchUp)
	if err != nil {
		return nil, err
	}
	key, err := svid.ParseCSR(p.GetCsr())
	if err != nil {
		return nil, refused("malformed CSR", err)
	}
	done := s.cfg.Audit.Begin(ctx, event(ctx, "x509svid.new", e.SPIFFEID, e.ID))
	out, err := s.cfg.Issuer.IssueX509(ctx, time.Now(), svid.X509Request{
		Kind: svid.Workload, ID: e.SPIFFEID, PublicKey: key, DNSNames: distinct(e.DNSNames), TTL: e.X509SVIDTTL,
		EntryID: e.ID, AgentID: agent,
	})
	if err != nil {
		done(err)
		return nil, fmt.Errorf("failed to sign X509-SVID: %w", err)
	}
	done(nil, slog.String(telemetry.Serial, out.Serial), slog.Time(telemetry.NotAfter, out.NotAfter))
	return x509ToWire(e.SPIFFEID, out), nil
}

// distinct drops repeats, which an entry may have, as with SPIRE, and an
// X509-SVID may not. The order stays, because the first name is the subject's.
func distinct(names []string) []string {
	if len(names) < 2 {
		return names
	}
	out := make([]string, 0, len(names))
	for _, name := range names {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}
