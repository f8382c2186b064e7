package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sort"
	"strings"
	"sync"

	"github.com/credence-id/credence/pkg/store"
)

const (
	// eventOverhead is what an Event takes beside its key and value, in bytes.
	eventOverhead = 48
	// watchChunk is how many batches a watcher takes out of the ring at a time.
	watchChunk = 32
)

// Ring keeps the newest batches, bounded in number and bytes, and says when there
// are more. All its methods may be called concurrently.
type Ring struct {
	maxBatches, maxBytes int

	mu      sync.Mutex
	base    store.Revision // guarded by mu, like all below; kept begins after it
	head    store.Revision // of the last batch, or base
	kept    []store.Batch
	bytes   int
	changed chan struct{} // closed and replaced when anything here changes
	err     error         // why there will be no more
}

// NewRing returns a ring that begins after the revision head.
func NewRing(head store.Revision, maxBatches, maxBytes int) *Ring {
	return &Ring{maxBatches: maxBatches, maxBytes: maxBytes, base: head, head: head, changed: make(chan struct{})}
}

// Publish adds batches, in order, and wakes everybody.
func (r *Ring) Publish(batches ...store.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batches {
		r.kept = append(r.kept, b)
		r.head = b.Revision
		r.bytes += sizeOf(b)
	}
	for len(r.kept) > r.maxBatches || r.bytes > r.maxBytes {
		r.bytes -= sizeOf(r.kept[0])
		r.base = r.kept[0].Revision
		r.kept[0] = store.Batch{}
		r.kept = r.kept[1:]
	}
	r.wakeLocked()
}

// Reset forgets everything up to head: what was between is not known, or not kept
// any more.
func (r *Ring) Reset(head store.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base, r.head, r.kept, r.bytes = head, head, nil, 0
	r.wakeLocked()
}

// End makes err the answer to everything from now on: the first there was, or
// store.ErrClosed.
func (r *Ring) End(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil || errors.Is(err, store.ErrClosed) {
		r.err = err
	}
	r.wakeLocked()
}

func (r *Ring) wakeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// next copies batches after the given revision into buf, up to its capacity.
// If there are none yet, it returns a channel that is closed when that may
// have changed. A revision that the ring has not reached is waited for too.
func (r *Ring) next(after store.Revision, buf []store.Batch) ([]store.Batch, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return nil, nil, r.err
	case after < r.base:
		return nil, nil, fmt.Errorf("%w: revision %d, kept after %d", store.ErrCompacted, after, r.base)
	}
	i := sort.Search(len(r.kept), func(i int) bool { return r.kept[i].Revision > after })
	from := r.kept[i:]
	return append(buf[:0], from[:min(len(from), cap(buf))]...), r.changed, nil
}

// Head is the newest revision that was published. The error is End's.
func (r *Ring) Head() (store.Revision, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head, r.err
}

// Wait returns when the ring has reached rev, has ended, or ctx has. A ring that
// was closed has reached what it has: Close lets running readers finish.
func (r *Ring) Wait(ctx context.Context, rev store.Revision) error {
	for {
		r.mu.Lock()
		head, changed, err := r.head, r.changed, r.err
		r.mu.Unlock()
		switch {
		case rev <= head && (err == nil || errors.Is(err, store.ErrClosed)):
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Size is what the ring holds now.
func (r *Ring) Size() (batches, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.kept), r.bytes
}

// Watch is store.Store's, but for a revision that the ring has not reached, which
// is waited for. The watcher is its consumer: it holds a revision and a chunk of
// batches, no goroutine and no queue.
func (r *Ring) Watch(ctx context.Context, prefix string, after store.Revision) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		buf := make([]store.Batch, 0, watchChunk)
		for at := after; ; {
			if err := ctx.Err(); err != nil {
				yield(store.Batch{}, err)
				return
			}
			batches, changed, err := r.next(at, buf)
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

func sizeOf(b store.Batch) int {
	n := eventOverhead
	for _, e := range b.Events {
		n += eventOverhead + len(e.Key) + len(e.Value)
	}
	return n
}
