package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// agentLock is the name of the store's lock that agents are pruned under.
const agentLock = "prune_agents"

// pruneAgentBatch is how many agents one Update removes, each with its alias.
const pruneAgentBatch = batchOps / (3 + deleteEntryOps)

// PruneAgents forgets agents, and removes their aliases, if they are not banned
// and gone since before the given time ([Agent.GoneSince]), at the moment of the
// Update: one that came back meanwhile stays, also while it attests. It holds the
// store's lock "prune_agents" and asks due for those to look at once it has it:
// another server may have done the work while this one waited. It returns how
// many it removed; what it did before an error stays done.
func (r *Registry) PruneAgents(ctx context.Context, before time.Time, due func(context.Context) ([]spiffeid.ID, error)) (removed int, err error) {
	lock, err := r.store.Lock(ctx, agentLock)
	if err != nil {
		return 0, fmt.Errorf("pruning agents: %w", err)
	}
	defer lock.Unlock()
	ids, err := due(ctx)
	if err != nil {
		return 0, fmt.Errorf("pruning agents: %w", err)
	}
	for len(ids) > 0 {
		n, some := 0, ids[:min(len(ids), pruneAgentBatch)]
		ids = ids[len(some):]
		_, err := lock.Update(ctx, func(tx store.RWTx) (err error) {
			n, err = r.pruneAgents(tx, some, before)
			return err
		})
		if err != nil {
			return removed, fmt.Errorf("pruning agents: %w", err)
		}
		removed += n
	}
	return removed, nil
}

func (r *Registry) pruneAgents(tx store.RWTx, ids []spiffeid.ID, before time.Time) (removed int, err error) {
	for _, id := range ids {
		a, err := r.loadAgent(tx, id)
		if errors.Is(err, ErrNotFound) || err == nil && (a.Banned || !a.GoneSince().Before(before)) {
			continue
		}
		if err != nil {
			return 0, err
		}
		tx.Delete(agentKey(id))
		if err := r.deleteAlias(tx, a.AliasEntryID, id); err != nil {
			return 0, err
		}
		removed++
	}
	return removed, nil
}
