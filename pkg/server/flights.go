package server

import (
	"context"
	"sync"
	"time"
)

// flights shares what many ask for at once: whoever asks gets the outcome of a
// run that began after, and at most one is under way. However many ask, the work
// is that of one after the other. Made by newFlights.
type flights[T any] struct {
	// run is given a context that does not end with the caller's: others wait
	// for its outcome too. It bounds itself.
	run func(context.Context) (T, error)
	// gap is from the begin of one run to that of the next, at least.
	gap time.Duration
	// turn has a value while a run is under way.
	turn chan struct{}

	mu   sync.Mutex
	next *flight[T] // guarded by mu: the one that has not begun, if anybody asked
	last time.Time  // guarded by mu: when the one before began
}

// flight is one run; what came of it is set when done is closed.
type flight[T any] struct {
	done  chan struct{}
	value T
	err   error
}

func newFlights[T any](gap time.Duration, run func(context.Context) (T, error)) *flights[T] {
	return &flights[T]{run: run, gap: gap, turn: make(chan struct{}, 1)}
}

// get returns the outcome of a run that began after the call, or ctx's error
// when ctx ends before. One of those who wait does the work.
func (f *flights[T]) get(ctx context.Context) (none T, err error) {
	mine := f.join()
	select {
	case f.turn <- struct{}{}:
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
	defer func() { <-f.turn }()
	if err := f.pause(ctx, mine); err != nil {
		return none, err
	}
	if f.begin(mine) {
		mine.value, mine.err = f.run(context.WithoutCancel(ctx))
		close(mine.done)
	}
	return mine.value, mine.err // Who begins it also ends it, before the turn is free.
}

// join is the run that the caller waits for.
func (f *flights[T]) join() *flight[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		f.next = &flight[T]{done: make(chan struct{})}
	}
	return f.next
}

// begin says whether the caller, who has the turn, is to do the work.
func (f *flights[T]) begin(mine *flight[T]) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next != mine {
		return false
	}
	f.next, f.last = nil, time.Now()
	return true
}

// pause keeps the gap before a run that has not begun.
func (f *flights[T]) pause(ctx context.Context, mine *flight[T]) error {
	f.mu.Lock()
	left, begun := f.gap-time.Since(f.last), f.next != mine
	f.mu.Unlock()
	if left <= 0 || begun {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
