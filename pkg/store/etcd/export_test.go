package etcd

import (
	"context"
	"time"
)

// Compact forgets the kept history up to the head.
func Compact(ctx context.Context, s *Store) error {
	head, err := s.Head(ctx)
	if err != nil {
		return err
	}
	if err := s.ring.wait(ctx, head); err != nil {
		return err
	}
	s.ring.reset(head)
	return nil
}

// KeepHistory compacts as Open does with a History that no configuration may
// have.
func KeepHistory(ctx context.Context, s *Store, history time.Duration) {
	s.compactForEver(ctx, history)
}
