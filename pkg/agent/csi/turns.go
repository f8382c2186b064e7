package csi

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxAtOnce is how many calls mount or unmount at a time. The kernel does
	// one at a time anyway; the rest is reading /proc.
	maxAtOnce = 8
	// maxWaiting bounds the calls that have a turn or wait for one: more than a
	// node has pods, all of which come at once when it starts.
	maxWaiting = 2048
)

// turns lets one caller at a time have a key, and few callers have any.
type turns struct {
	slots chan struct{}

	mu sync.Mutex
	// guarded by mu:
	keys  map[string]*turn
	total int // callers that have a turn or wait for one
}

type turn struct {
	held  chan struct{} // has an element while somebody has the key
	users int           // guarded by turns.mu
}

func newTurns() *turns {
	return &turns{slots: make(chan struct{}, maxAtOnce), keys: make(map[string]*turn)}
}

// take waits until the caller has the key; release gives it to the next one.
func (t *turns) take(ctx context.Context, key string) (release func(), err error) {
	mine, err := t.enter(key)
	if err != nil {
		return nil, err
	}
	select {
	case mine.held <- struct{}{}:
	case <-ctx.Done():
		t.leave(key, mine)
		return nil, ctx.Err()
	}
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		<-mine.held
		t.leave(key, mine)
		return nil, ctx.Err()
	}
	return func() {
		<-t.slots
		<-mine.held
		t.leave(key, mine)
	}, nil
}

func (t *turns) enter(key string) (*turn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total >= maxWaiting {
		return nil, status.Errorf(codes.ResourceExhausted, "%d calls are under way; try again later", maxWaiting)
	}
	mine := t.keys[key]
	if mine == nil {
		mine = &turn{held: make(chan struct{}, 1)}
		t.keys[key] = mine
	}
	mine.users++
	t.total++
	return mine, nil
}

func (t *turns) leave(key string, mine *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine.users--
	t.total--
	if mine.users == 0 {
		delete(t.keys, key)
	}
}
