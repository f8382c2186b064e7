package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// PruneAgent forgets an agent, and removes its alias, if it is not banned and
// it is gone since before the given time ([Agent.GoneSince]), at the moment of
// the Update: one that came back meanwhile stays, also while it attests. It says
// whether it removed it.
func (r *Registry) PruneAgent(ctx context.Context, id spiffeid.ID, before time.Time) (removed bool, err error) {
	_, err = r.store.Update(ctx, func(tx store.RWTx) error {
		removed = false
		a, err := r.loadAgent(tx, id)
		if errors.Is(err, ErrNotFound) || err == nil && (a.Banned || !a.GoneSince().Before(before)) {
			return nil
		}
		if err != nil {
			return err
		}
		removed = true
		tx.Delete(agentKey(id))
		return r.deleteAlias(tx, a.AliasEntryID, id)
	})
	if err != nil {
		return false, fmt.Errorf("pruning agent: %w", err)
	}
	return removed, nil
}
