package attestor

import (
	"context"
	"sync"
	"time"
)

// deadline is a context that ends at a time, or with its parent, and makes a
// timer only for who waits on Done. Most attestors read a few files and never
// do; a timer for each of them would cost as much as one of the files.
type deadline struct {
	context.Context // the parent
	at              time.Time

	mu     sync.Mutex
	timed  context.Context    // guarded by mu; nil before Done was called
	cancel context.CancelFunc // of timed
	ended  bool               // guarded by mu: stop was called
}

func withDeadline(parent context.Context, at time.Time) *deadline {
	return &deadline{Context: parent, at: at}
}

// Deadline is context.Context.
func (d *deadline) Deadline() (time.Time, bool) {
	if at, ok := d.Context.Deadline(); ok && at.Before(d.at) {
		return at, true
	}
	return d.at, true
}

// Done is context.Context.
func (d *deadline) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timed == nil {
		d.timed, d.cancel = context.WithDeadline(d.Context, d.at)
		if d.ended {
			d.cancel()
		}
	}
	return d.timed.Done()
}

// Err is context.Context.
func (d *deadline) Err() error {
	d.mu.Lock()
	timed, ended := d.timed, d.ended
	d.mu.Unlock()
	switch {
	case timed != nil:
		return timed.Err()
	case d.Context.Err() != nil:
		return d.Context.Err()
	case !time.Now().Before(d.at):
		return context.DeadlineExceeded
	case ended:
		return context.Canceled
	}
	return nil
}

// stop ends the context and frees its timer.
func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	if d.cancel != nil {
		d.cancel()
	}
}
