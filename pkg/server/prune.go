package server

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/retry"
	"github.com/credence-id/credence/pkg/telemetry"
)

// prune removes entries and join tokens that have expired, on time.
func (k *control) prune(ctx context.Context) error {
	return retry.Forever(ctx, k.registry.Run, func(err error, pause time.Duration) {
		k.log.ErrorContext(ctx, "what has expired cannot be removed now", telemetry.Err, err, telemetry.Retry, pause)
	})
}

// pruneAgents removes agents that have been gone for longer than
// prune_attested_nodes_expired_for, if that is set.
func (k *control) pruneAgents(ctx context.Context) error {
	after := k.settings.PruneAttestedNodesExpiredFor
	if after == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := k.index.WaitFor(ctx, 0); err != nil {
		return err
	}
	// No two looks are closer together than a hundredth of the time that an
	// agent may be gone.
	least := max(after/100, time.Second)
	for {
		next, err := k.pruneGone(ctx, time.Now().Add(-after))
		if err != nil {
			k.log.ErrorContext(ctx, "agents that are gone cannot be removed now", telemetry.Err, err, telemetry.Retry, retry.Most)
			next = time.Now().Add(retry.Most - after)
		}
		timer := time.NewTimer(max(least, time.Until(next.Add(after))))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// pruneGone removes agents whose last SVID ended before the cutoff, and returns
// when the SVID of the next one ends. An agent that is made meanwhile is not due
// before one that ends now. Of many servers one does it, the others find nothing
// to do when it is their turn.
func (k *control) pruneGone(ctx context.Context, cutoff time.Time) (next time.Time, err error) {
	due, next := k.gone(cutoff)
	if len(due) == 0 {
		return next, nil
	}
	removed, err := k.registry.PruneAgents(ctx, cutoff, func(ctx context.Context) ([]spiffeid.ID, error) {
		if err := k.fresh.wait(ctx); err != nil {
			return nil, err
		}
		due, next = k.gone(cutoff)
		return due, nil
	})
	if removed > 0 {
		k.log.InfoContext(ctx, "removed agents that are gone", telemetry.Count, removed)
	}
	return next, err
}

// gone lists the agents whose last SVID ended before the cutoff, and says when
// the SVID of the next one ends: now, if none does before.
func (k *control) gone(cutoff time.Time) (due []spiffeid.ID, next time.Time) {
	next = time.Now()
	banned := false
	filter := registry.AgentFilter{Banned: &banned}
	if !k.settings.PruneTOFUNodes {
		again := true
		filter.CanReattest = &again
	}
	for after, more := "", true; more; more = after != "" {
		var page []*registry.Agent
		page, after = k.index.ListAgents(filter, after, registry.MaxPage)
		for _, a := range page {
			switch end := a.GoneSince(); {
			case end.Before(cutoff):
				due = append(due, a.ID)
			case end.Before(next):
				next = end
			}
		}
	}
	return due, next
}
