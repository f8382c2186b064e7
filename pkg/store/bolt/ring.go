package bolt

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/credence-id/credence/pkg/store"
)

// eventOverhead is what an Event takes beside its key and value.
const eventOverhead = 48

// ring keeps the newest batches, bounded in number and bytes, and says when
// there are more. Revisions in it are consecutive.
type ring struct {
	maxBatches, maxBytes int

	mu      sync.Mutex
	base    store.Revision // guarded by mu, like all below; kept begins after it
	kept    []store.Batch
	bytes   int
	changed chan struct{} // closed and replaced when anything here changes
	err     error         // why there will be no more
}

func newRing(head store.Revision, maxBatches, maxBytes int) *ring {
	return &ring{maxBatches: maxBatches, maxBytes: maxBytes, base: head, changed: make(chan struct{})}
}

func (r *ring) headLocked() store.Revision { return r.base + store.Revision(len(r.kept)) }

// newest is the revision of the last batch that was published.
func (r *ring) newest() (store.Revision, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.headLocked(), r.err
}

// publish adds the batches of one group and wakes everybody.
func (r *ring) publish(batches []store.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range batches {
		r.kept = append(r.kept, b)
		r.bytes += sizeOf(b)
	}
	for len(r.kept) > r.maxBatches || r.bytes > r.maxBytes {
		r.bytes -= sizeOf(r.kept[0])
		r.kept[0] = store.Batch{}
		r.kept = r.kept[1:]
		r.base++
	}
	r.wakeLocked()
}

// end makes err the answer to everything from now on.
func (r *ring) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil || errors.Is(err, store.ErrClosed) {
		r.err = err
	}
	r.wakeLocked()
}

func (r *ring) wakeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// next copies batches after the given revision into buf, up to its capacity.
// If there are none yet, it returns a channel that is closed when that may
// have changed.
func (r *ring) next(after store.Revision, buf []store.Batch) ([]store.Batch, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	head := r.headLocked()
	switch {
	case r.err != nil:
		return nil, nil, r.err
	case after > head:
		return nil, nil, fmt.Errorf("%w: revision %d is ahead of this store, which is at %d", store.ErrCompacted, after, head)
	case after < r.base:
		return nil, nil, fmt.Errorf("%w: revision %d, kept after %d", store.ErrCompacted, after, r.base)
	}
	from := r.kept[after-r.base:]
	return append(buf[:0], from[:min(len(from), cap(buf))]...), r.changed, nil
}

// reached waits until rev has been published.
func (r *ring) reached(ctx context.Context, rev store.Revision) error {
	for {
		r.mu.Lock()
		head, changed, err := r.headLocked(), r.changed, r.err
		r.mu.Unlock()
		switch {
		case rev <= head && (err == nil || errors.Is(err, store.ErrClosed)):
			return nil // Close lets running readers finish.
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

// size is what the ring holds now.
func (r *ring) size() (batches, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.kept), r.bytes
}

func sizeOf(b store.Batch) int {
	n := eventOverhead
	for _, e := range b.Events {
		n += eventOverhead + len(e.Key) + len(e.Value)
	}
	return n
}
