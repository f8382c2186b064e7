package agent

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/telemetry"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// lowBudget is when an outage becomes urgent, whatever the SVIDs' lifetimes: what
// it takes to wake somebody who brings a server back.
const lowBudget = 15 * time.Minute

// outage is what was said of the time without a server that is under way.
type outage struct {
	mu sync.Mutex
	// guarded by mu:

	since time.Time // zero: there is a server
	first time.Duration
	said  stage
}

// stage of an outage; each is said once, when it is reached.
type stage int

const (
	stageNone stage = iota
	stageLost
	stageHalf // half of the budget is spent
	stageLow  // lowBudget or less is left
	stageOver // a workload is without an identity
)

// away takes note that no server can be reached at this time, and returns the
// stage that is to be said; stageNone: nothing is new.
func (o *outage) away(now time.Time, left time.Duration) stage {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since, o.first, o.said = now, left, stageLost
		if left <= 0 {
			o.said = stageOver // The line of stageLost says so, and there is nothing left to warn of.
		}
		return stageLost
	}
	reached := stageLost
	switch {
	case left <= 0:
		reached = stageOver
	case left <= lowBudget:
		reached = stageLow
	case left <= o.first/2:
		reached = stageHalf
	}
	if reached <= o.said {
		return stageNone
	}
	o.said = reached
	return reached
}

// over ends the outage. It returns for how long there was no server; 0 if there
// was one.
func (o *outage) over(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return 0
	}
	lasted := now.Sub(o.since)
	o.since = time.Time{}
	return lasted
}

// start is when the outage began; zero: there is none.
func (o *outage) start() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.since
}

// budgetLeft is for how long the agent could go on if all servers vanished now:
// until the first workload is without an identity. One that has nothing to serve
// has that of its own SVID, which it needs to be let in again.
func (a *Agent) budgetLeft(now time.Time) (time.Duration, cache.Budget) {
	b := a.cache.Budget(now)
	if b.Entries() > 0 {
		return b.Left, b
	}
	if own := a.identity.current.Load(); own != nil {
		return max(0, own.notAfter().Sub(now)), b
	}
	return 0, b
}

// sayAway logs how an outage stands, at each stage once.
func (a *Agent) sayAway(ctx context.Context, now time.Time) {
	left, b := a.budgetLeft(now)
	reached := a.outage.away(now, left)
	if reached == stageNone {
		return
	}
	log := a.log.With(telemetry.OutageBudget, left.Round(time.Second), telemetry.Served, b.InUse+b.Warm, telemetry.Unserved, b.Missing+b.Cold)
	switch reached {
	case stageNone:
	case stageLost:
		log.InfoContext(ctx, "there is no server: what is held is served for the outage budget")
	case stageHalf:
		log.WarnContext(ctx, "half of the outage budget is spent: bring a server back")
	case stageLow:
		log.WarnContext(ctx, "the outage budget is low: bring a server back, or workloads lose their identities")
	case stageOver:
		log.ErrorContext(ctx, "the outage budget is spent: workloads are without an identity until a server is back")
	}
}

// outageBudget is what the admin API says of it.
func (a *Agent) outageBudget() *operatorv1.OutageBudgetResponse {
	now := time.Now()
	left, b := a.budgetLeft(now)
	out := &operatorv1.OutageBudgetResponse{
		Left: durationpb.New(left), Connected: a.connected.Load(),
		InUse: count32(b.InUse), Warm: count32(b.Warm), Missing: count32(b.Missing), Cold: count32(b.Cold),
		PersistSvids: a.config.Agent.PersistSVIDs,
	}
	if since := a.outage.start(); !since.IsZero() && !out.Connected {
		out.AwaySince = timestamppb.New(since)
	}
	if own := a.identity.current.Load(); own != nil {
		out.OwnSvidExpiresAt, out.CanReattest = timestamppb.New(own.notAfter()), own.reattestable
	}
	return out
}

func count32(n int) uint32 { return uint32(max(0, min(n, math.MaxUint32))) }

// registerOutage shows the budget as metrics.
func (a *Agent) registerOutage() error {
	for name, read := range map[string]struct {
		help string
		left func(now time.Time) time.Duration
	}{
		"outage_budget_seconds": {"For how long the agent could go on if all servers vanished now: until the first workload is without an identity.",
			func(now time.Time) time.Duration { left, _ := a.budgetLeft(now); return left }},
		"svid_left_seconds": {"Until the agent's own X509-SVID ends, after which it has to attest anew; 0 when it has none.",
			func(now time.Time) time.Duration {
				if own := a.identity.current.Load(); own != nil {
					return max(0, own.notAfter().Sub(now))
				}
				return 0
			}},
		"server_away_seconds": {"For how long the agent has been without a server; 0 while it follows one.",
			func(now time.Time) time.Duration {
				if since := a.outage.start(); !since.IsZero() {
					return now.Sub(since)
				}
				return 0
			}},
	} {
		gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "credence", Subsystem: "agent", Name: name, Help: read.help},
			func() float64 { return read.left(time.Now()).Seconds() })
		if err := a.registry.Register(gauge); err != nil {
			return err
		}
	}
	return nil
}
