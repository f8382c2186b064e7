package etcd

import (
	"context"
	"fmt"
	"iter"
	"sort"
	"strings"

	"github.com/credence-id/credence/pkg/store"
)

// watchChunk is how many batches a watcher takes out of the ring at a time.
const watchChunk = 32

// Watch implements store.Store. The watcher is its consumer: it holds a
// revision and a chunk of batches, no goroutine and no queue. The history kept
// for it is that of this process, since Open at the earliest. While etcd is
// away it waits.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		if err := s.notAhead(ctx, after); err != nil {
			yield(store.Batch{}, err)
			return
		}
		buf := make([]store.Batch, 0, watchChunk)
		for at := after; ; {
			if err := ctx.Err(); err != nil {
				yield(store.Batch{}, err)
				return
			}
			batches, changed, err := s.ring.next(at, buf)
			if err != nil {
				yield(store.Batch{}, err)
				return
			}
			for _, b := range batches {
				at = b.Revision
				if b.Events = withPrefix(b.Events, prefix); len(b.Events) > 0 && !yield(b, nil) {
					return
				}
			}
			if len(batches) > 0 {
				clear(batches) // The ring decides how long they live.
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// notAhead refuses a revision that this store never had. One that the feed has
// not reached is another matter.
func (s *Store) notAhead(ctx context.Context, after store.Revision) error {
	reached, _, err := s.ring.reached()
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

// withPrefix is the part of events, which are in key order, that has prefix.
func withPrefix(events []store.Event, prefix string) []store.Event {
	if prefix == "" {
		return events
	}
	from := sort.Search(len(events), func(i int) bool { return events[i].Key >= prefix })
	events = events[from:]
	n := sort.Search(len(events), func(i int) bool { return !strings.HasPrefix(events[i].Key, prefix) })
	return events[:n:n]
}
