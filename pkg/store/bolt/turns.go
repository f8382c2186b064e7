package bolt

import (
	"context"
	"slices"
	"sync"

	"github.com/credence-id/credence/pkg/store"
)

// turns is a fair mutex whose holder can see whether somebody waits, and can
// hand it over directly. The queue holds blocked callers, not work: it is as
// long as there are callers.
type turns struct {
	closing chan struct{}

	mu     sync.Mutex
	taken  bool            // guarded by mu
	closed bool            // guarded by mu
	queue  []chan struct{} // guarded by mu; first come, first served
	free   chan struct{}   // closed when the turn is put down after close
}

func newTurns() *turns {
	return &turns{closing: make(chan struct{}), free: make(chan struct{})}
}

// take waits for the turn. After an error the caller does not have it.
func (t *turns) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return store.ErrClosed
	}
	if !t.taken {
		t.taken = true
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	t.queue = append(t.queue, mine)
	t.mu.Unlock()

	select {
	case <-mine:
		return nil
	case <-ctx.Done():
		return t.leave(mine, ctx.Err())
	case <-t.closing:
		return t.leave(mine, store.ErrClosed)
	}
}

// leave gives up waiting because of err. If the turn was handed over at the
// same moment it is passed on by its holder like any other, so the caller
// keeps it and learns nothing of err.
func (t *turns) leave(mine chan struct{}, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.queue, mine)
	if i < 0 {
		return nil
	}
	t.queue = slices.Delete(t.queue, i, i+1)
	return err
}

// pass hands the turn to who waits longest; false if nobody does, and then the
// caller still has it.
func (t *turns) pass() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.passLocked()
}

func (t *turns) passLocked() bool {
	if len(t.queue) == 0 {
		return false
	}
	next := t.queue[0]
	t.queue = slices.Delete(t.queue, 0, 1)
	close(next)
	return true
}

// release hands the turn on, or puts it down.
func (t *turns) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.passLocked() {
		return
	}
	t.taken = false
	if t.closed {
		close(t.free)
	}
}

// close refuses new callers, sends those in the queue away and waits until the
// turn has been put down. It is called once.
func (t *turns) close() {
	t.mu.Lock()
	t.closed = true
	close(t.closing)
	if !t.taken {
		close(t.free)
	}
	t.mu.Unlock()
	<-t.free
}
