package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/pkg/store"
)

// writeWait bounds one write: a client is told that the store is away long
// before it gives up by itself.
const writeWait = 10 * time.Second

// watchedStore is a store whose writes are bounded in time and whose failures
// are counted.
type watchedStore struct {
	store.Store
	failures *prometheus.CounterVec
}

func watchStore(s store.Store, reg prometheus.Registerer) (*watchedStore, error) {
	w := &watchedStore{Store: s, failures: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credence_store_unavailable_total",
		Help: "Operations that the store could not do because it was away, by operation: read, write, head, watch or lock.",
	}, []string{"operation"})}
	for _, op := range []string{"read", "write", "head", "watch", "lock"} {
		w.failures.WithLabelValues(op)
	}
	return w, reg.Register(w.failures)
}

// count takes note of an error that is the store's.
func (w *watchedStore) count(op string, err error) error {
	if errors.Is(err, store.ErrUnavailable) {
		w.failures.WithLabelValues(op).Inc()
	}
	return err
}

// View is the store's.
func (w *watchedStore) View(ctx context.Context, fn func(store.Tx) error) error {
	return w.count("read", w.Store.View(ctx, fn))
}

// Update is the store's, within writeWait.
func (w *watchedStore) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	return w.write(ctx, func(ctx context.Context) (store.Revision, error) { return w.Store.Update(ctx, fn) })
}

func (w *watchedStore) write(ctx context.Context, do func(context.Context) (store.Revision, error)) (store.Revision, error) {
	bounded, cancel := context.WithTimeout(ctx, writeWait)
	defer cancel()
	rev, err := do(bounded)
	if bounded.Err() != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, store.ErrUnavailable) {
		err = fmt.Errorf("%w: a write was not done within %v; it may be done yet", store.ErrUnavailable, writeWait)
	}
	return rev, w.count("write", err)
}

// Head is the store's.
func (w *watchedStore) Head(ctx context.Context) (store.Revision, error) {
	rev, err := w.Store.Head(ctx)
	return rev, w.count("head", err)
}

// Watch is the store's.
func (w *watchedStore) Watch(ctx context.Context, prefix string, after store.Revision) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		for b, err := range w.Store.Watch(ctx, prefix, after) {
			if !yield(b, w.count("watch", err)) {
				return
			}
		}
	}
}

// Lock is the store's, whose Updates are within writeWait too.
func (w *watchedStore) Lock(ctx context.Context, name string) (store.Lock, error) {
	l, err := w.Store.Lock(ctx, name)
	if err != nil {
		return nil, w.count("lock", err)
	}
	return watchedLock{l, w}, nil
}

type watchedLock struct {
	store.Lock
	store *watchedStore
}

// Update is the lock's, within writeWait.
func (l watchedLock) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	return l.store.write(ctx, func(ctx context.Context) (store.Revision, error) { return l.Lock.Update(ctx, fn) })
}
