package etcd

import (
	"context"
	"fmt"
	"iter"

	"github.com/credence-id/credence/pkg/store"
)

// Watch implements store.Store. The history kept for it is that of this process,
// since Open at the earliest. While etcd is away it waits.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		if err := s.notAhead(ctx, after); err != nil {
			yield(store.Batch{}, err)
			return
		}
		s.ring.Watch(ctx, prefix, after)(yield)
	}
}

// notAhead refuses a revision that this store never had. One that the feed has
// not reached is another matter.
func (s *Store) notAhead(ctx context.Context, after store.Revision) error {
	reached, err := s.ring.Head()
	if err != nil || after <= reached {
		return err
	}
	head, err := s.Head(ctx)
	if err != nil {
		return err
	}
	if after > head {
		return fmt.Errorf("%w: revision %d is ahead of this store, which is at %d", store.ErrCompacted, after, head)
	}
	return nil
}
