package apitest

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/credence-id/credence/pkg/store"
)

// Faults makes a store fail at chosen Updates. The zero value fails none.
type Faults struct {
	store.Store

	// countdown is how many Updates go well until one fails; not positive for
	// none.
	countdown atomic.Int64
	committed atomic.Bool
}

// Wrap is for Options.Wrap.
func (f *Faults) Wrap(s store.Store) store.Store {
	f.Store = s
	return f
}

// FailAt makes the nth Update from now on (1: the next) fail with
// store.ErrUnavailable, with its changes committed or not, as a crash just after
// or just before the commit would.
func (f *Faults) FailAt(n int64, committed bool) {
	f.committed.Store(committed)
	f.countdown.Store(n)
}

// Update is the store's, or a failure.
func (f *Faults) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	if f.countdown.Add(-1) != 0 {
		return f.Store.Update(ctx, fn)
	}
	if f.committed.Load() {
		if rev, err := f.Store.Update(ctx, fn); err != nil {
			return rev, err
		}
	}
	return 0, fmt.Errorf("%w: injected", store.ErrUnavailable)
}
