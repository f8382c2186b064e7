package bolt

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestTurnGivenWhileLeaving hands the turn to a caller that is just giving up:
// it must end up with the turn, which would otherwise be lost.
func TestTurnGivenWhileLeaving(t *testing.T) {
	t.Parallel()
	turns := newTurns()
	if err := turns.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return turns.take(ctx) })
	queued := func() int {
		turns.mu.Lock()
		defer turns.mu.Unlock()
		return len(turns.queue)
	}
	for queued() == 0 {
		time.Sleep(time.Millisecond)
	}
	turns.mu.Lock()
	cancel()
	time.Sleep(10 * time.Millisecond) // It wakes and waits for the mutex.
	if !turns.passLocked() {
		t.Error("nobody to pass the turn to")
	}
	turns.mu.Unlock()
	if err := g.Wait(); err != nil {
		t.Errorf("take: %v, but the turn was handed over", err)
	}
	turns.release()
	if err := turns.take(t.Context()); err != nil {
		t.Error(err)
	}
}
