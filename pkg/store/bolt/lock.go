package bolt

import (
	"context"
	"sync"

	"github.com/credence-id/credence/pkg/store"
)

// locks are named mutexes of this process, which is the only one at the file.
type locks struct {
	closing chan struct{}

	mu   sync.Mutex
	free map[string]chan struct{} // guarded by mu; holds one token when free
	held map[*lock]struct{}       // guarded by mu
}

func newLocks() *locks {
	return &locks{
		closing: make(chan struct{}),
		free:    make(map[string]chan struct{}),
		held:    make(map[*lock]struct{}),
	}
}

// Lock implements store.Store.
func (s *Store) Lock(ctx context.Context, name string) (store.Lock, error) {
	free := s.locks.named(name)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-s.locks.closing:
		return nil, store.ErrClosed
	default:
	}
	select {
	case <-free:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.locks.closing:
		return nil, store.ErrClosed
	}
	l := &lock{store: s, free: free, lost: make(chan struct{})}
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	s.locks.held[l] = struct{}{}
	return l, nil
}

func (ls *locks) named(name string) chan struct{} {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	free := ls.free[name]
	if free == nil {
		free = make(chan struct{}, 1)
		free <- struct{}{}
		ls.free[name] = free
	}
	return free
}

// close ends the waiting and tells the holders.
func (ls *locks) close() {
	close(ls.closing)
	ls.mu.Lock()
	held := make([]*lock, 0, len(ls.held))
	for l := range ls.held {
		held = append(held, l)
	}
	ls.mu.Unlock()
	for _, l := range held {
		l.Unlock()
	}
}

// lock implements store.Lock.
type lock struct {
	store *Store
	free  chan struct{}
	once  sync.Once
	lost  chan struct{}
}

// Update implements store.Lock. Whether the lock is held is asked while the
// Update has its turn; what the next holder writes comes after it.
func (l *lock) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	return l.store.Update(ctx, func(tx store.RWTx) error {
		select {
		case <-l.lost:
			return store.ErrLockLost
		default:
			return fn(tx)
		}
	})
}

// Lost implements store.Lock.
func (l *lock) Lost() <-chan struct{} { return l.lost }

// Unlock implements store.Lock.
func (l *lock) Unlock() {
	l.once.Do(func() {
		close(l.lost)
		ls := l.store.locks
		ls.mu.Lock()
		delete(ls.held, l)
		ls.mu.Unlock()
		l.free <- struct{}{}
	})
}
