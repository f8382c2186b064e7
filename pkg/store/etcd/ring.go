package etcd

import (
	"context"
	"fmt"
	"sort"
	"sync"

	"github.com/credence-id/credence/pkg/store"
)

// eventOverhead is what an Event takes beside its key and value.
const eventOverhead = 48

// ring keeps the newest batches, bounded in bytes, and says when there are
// more. It is filled by the feed.
type ring struct {
	maxBytes int

	mu      sync.Mutex
	base    store.Revision // guarded by mu, like all below; kept begins after it
	head    store.Revision // of the last batch, or base
	kept    []store.Batch
	bytes   int
	changed chan struct{} // closed and replaced when anything here changes
	err     error         // why there will be no more
}

func newRing(head store.Revision, maxBytes int) *ring {
	return &ring{maxBytes: maxBytes, base: head, head: head, changed: make(chan struct{})}
}

// publish adds a batch and wakes everybody.
func (r *ring) publish(b store.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = append(r.kept, b)
	r.head = b.Revision
	r.bytes += sizeOf(b)
	for r.bytes > r.maxBytes {
		r.bytes -= sizeOf(r.kept[0])
		r.base = r.kept[0].Revision
		r.kept[0] = store.Batch{}
		r.kept = r.kept[1:]
	}
	r.wakeLocked()
}

// reset forgets everything up to head: what was between is not known.
func (r *ring) reset(head store.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base, r.head, r.kept, r.bytes = head, head, nil, 0
	r.wakeLocked()
}

// end makes err the answer to everything from now on.
func (r *ring) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
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
// have changed. A revision that the ring has not reached is waited for too.
func (r *ring) next(after store.Revision, buf []store.Batch) ([]store.Batch, <-chan struct{}, error) {
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

// reached says how far the ring is, and what is closed when that changes.
func (r *ring) reached() (store.Revision, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head, r.changed, r.err
}

// wait returns when the ring has reached rev, has ended, or ctx has.
func (r *ring) wait(ctx context.Context, rev store.Revision) error {
	for {
		head, changed, err := r.reached()
		if head >= rev || err != nil {
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
