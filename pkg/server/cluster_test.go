package server

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// cluster is a store that several servers of one test share. What an engine on
// other machines adds to that, each server's tether has; test/integration has
// the engine itself.
type cluster struct {
	shared  store.Store
	servers []*running
}

// newCluster starts n servers on one store.
func newCluster(t testing.TB, n int, change ...func(*Config)) *cluster {
	t.Helper()
	c := &cluster{shared: openShared(t)}
	for range n {
		c.add(t, change...)
	}
	return c
}

func openShared(t testing.TB) store.Store {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// add starts one more server.
func (c *cluster) add(t testing.TB, change ...func(*Config)) *running {
	t.Helper()
	cfg := testConfig(t)
	for _, f := range change {
		f(&cfg)
	}
	r := startOn(t, cfg, newTether(c.shared))
	c.servers = append(c.servers, r)
	return r
}

// at connects an agent to a server.
func (a *testAgent) at(t testing.TB, r *running) *grpc.ClientConn {
	t.Helper()
	return r.dial(t, &a.cert)
}

// tether is one server's way to a shared store: it can be cut, and the log can
// lag. A lock that is held over it is lost only when expire is called, as by the
// end of a lease.
type tether struct {
	store.Store
	heads atomic.Int64 // how often the head was asked for
	// loading, if set, makes the tether slow once the server is put together.
	loading bool
	queues  sync.Map // lock's name → chan struct{} of one turn

	mu sync.Mutex
	// guarded by mu:
	away chan struct{} // not nil: cut, and closed when that ends
	late chan struct{} // not nil: the log lags, and closed when that ends
	slow chan struct{} // not nil: nothing is read, and closed when that ends
	held []store.Lock
	info store.Info
	back store.Revision // how far the store seems to have been put back
}

func newTether(s store.Store) *tether {
	t := &tether{Store: s, info: s.Info()}
	t.info.Remote = true
	return t
}

// cutTimeout is how long an operation on a cut tether takes to fail.
const cutTimeout = 50 * time.Millisecond

func (w *tether) cut() { w.set(&w.away, true) }

func (w *tether) heal() { w.set(&w.away, false) }

func (w *tether) lag() { w.set(&w.late, true) }

func (w *tether) catchUp() { w.set(&w.late, false) }

func (w *tether) set(what *chan struct{}, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case on && *what == nil:
		*what = make(chan struct{})
	case !on && *what != nil:
		close(*what)
		*what = nil
	}
}

// expire ends the leases of all locks that are held.
func (w *tether) expire() {
	w.mu.Lock()
	held := w.held
	w.held = nil
	w.mu.Unlock()
	for _, l := range held {
		l.Unlock()
	}
}

func (w *tether) reach(ctx context.Context) error {
	w.mu.Lock()
	away := w.away
	w.mu.Unlock()
	if away == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(cutTimeout):
		return fmt.Errorf("%w: no answer", store.ErrUnavailable)
	}
}

// flow waits while the log does not get through.
func (w *tether) flow(ctx context.Context) {
	for {
		w.mu.Lock()
		wait := w.away
		if wait == nil {
			wait = w.late
		}
		w.mu.Unlock()
		if wait == nil {
			return
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return
		}
	}
}

func (w *tether) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := w.reach(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	slow := w.slow
	w.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w.Store.View(ctx, fn)
}

func (w *tether) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	if err := w.reach(ctx); err != nil {
		return 0, err
	}
	return w.Store.Update(ctx, fn)
}

func (w *tether) Head(ctx context.Context) (store.Revision, error) {
	w.heads.Add(1)
	if err := w.reach(ctx); err != nil {
		return 0, err
	}
	head, err := w.Store.Head(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	return head - w.back, err
}

func (w *tether) Watch(ctx context.Context, prefix string, after store.Revision) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		for b, err := range w.Store.Watch(ctx, prefix, after) {
			w.flow(ctx)
			if !yield(b, err) {
				return
			}
		}
	}
}

// Lock is the store's. As with an engine whose locks can be lost, who wants one
// waits for the holder of the same process to give it up, lost or not.
func (w *tether) Lock(ctx context.Context, name string) (store.Lock, error) {
	if err := w.reach(ctx); err != nil {
		return nil, err
	}
	queue, _ := w.queues.LoadOrStore(name, make(chan struct{}, 1))
	turn := queue.(chan struct{})
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l, err := w.Store.Lock(ctx, name)
	if err != nil {
		<-turn
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = append(w.held, l)
	return &leased{Lock: l, free: sync.OnceFunc(func() { <-turn })}, nil
}

// leased is a lock of which expire ends the lease, and not the waiting for it.
type leased struct {
	store.Lock
	free func()
}

func (l *leased) Unlock() {
	l.Lock.Unlock()
	l.free()
}

func (w *tether) Info() store.Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.info
}

// Close leaves the store to the others.
func (w *tether) Close() error {
	w.heal()
	w.catchUp()
	w.set(&w.slow, false)
	w.expire()
	return nil
}
