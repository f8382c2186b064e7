package bolt

import (
	"context"
	"fmt"
	"iter"

	"github.com/credence-id/credence/pkg/store"
)

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		if head, err := s.ring.Head(); err == nil && after > head && ctx.Err() == nil {
			yield(store.Batch{}, fmt.Errorf("%w: revision %d is ahead of this store, which is at %d", store.ErrCompacted, after, head))
			return
		}
		s.ring.Watch(ctx, prefix, after)(yield)
	}
}
