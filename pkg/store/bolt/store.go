package bolt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/engine"
)

// Store is an open database file. It implements store.Store.
type Store struct {
	cfg     Config
	db      *bbolt.DB
	info    store.Info
	file    fs.FileInfo // of the file at cfg.Path when it was opened
	ring    *engine.Ring
	turns   *turns
	locks   *locks
	metrics *metrics

	// group is the one that is open to join, or nil. It belongs to whoever
	// holds the turn.
	group *group
	// failing is set while the last commit has not been taken by the disk.
	failing atomic.Bool

	mu      sync.Mutex
	closed  bool           // guarded by mu
	readers sync.WaitGroup // Add only under mu and while !closed
}

var _ store.Store = (*Store)(nil)

// Info implements store.Store.
func (s *Store) Info() store.Info { return s.info }

// Head implements store.Store. It is answered from memory: this process is
// the only writer.
func (s *Store) Head(ctx context.Context) (store.Revision, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return s.ring.Head()
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	return s.read(ctx, func(_ *bbolt.Tx, snap *snapshot) error { return fn(snap) })
}

// Backup implements store.Store: w receives a database file, which Open opens
// as it is. Call Renew on a copy that is going to live beside this store or
// after it.
func (s *Store) Backup(ctx context.Context, w io.Writer) (rev store.Revision, err error) {
	err = s.read(ctx, func(tx *bbolt.Tx, snap *snapshot) error {
		rev = snap.rev
		// bbolt does not pass on why its writer stopped it: remember it.
		var cause error
		_, err := tx.WriteTo(writerFunc(func(p []byte) (n int, err error) {
			if err = ctx.Err(); err == nil {
				n, err = w.Write(p)
			}
			cause = err
			return n, err
		}))
		if err = cmp.Or(cause, err); err != nil {
			return fmt.Errorf("store: writing backup: %w", err)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return rev, nil
}

// read runs fn over a snapshot that is durable.
func (s *Store) read(ctx context.Context, fn func(*bbolt.Tx, *snapshot) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.readers.Done()
	tx, err := s.db.Begin(false)
	if err != nil {
		return unavailable("beginning to read", err)
	}
	defer tx.Rollback() //nolint:errcheck // A reader's rollback returns nil on an open transaction.

	// bbolt shows a commit to readers while its last fsync is under way: hold
	// the snapshot until that fsync has returned.
	snap := newSnapshot(tx)
	if err := s.ring.Wait(ctx, snap.rev); err != nil {
		return err
	}
	return fn(tx, snap)
}

// enter registers a reader that Close will wait for.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	s.readers.Add(1)
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return store.ErrClosed
	}
	s.closed = true
	s.mu.Unlock()

	s.locks.close()
	s.turns.close() // Waits for the Updates that have begun.
	s.ring.End(store.ErrClosed)
	s.readers.Wait()
	s.metrics.all.Unregister(s.cfg.Registerer)
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("store: closing %s: %w", s.cfg.Path, err)
	}
	return nil
}

// unavailable wraps an error of bbolt.
func unavailable(op string, err error) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	return fmt.Errorf("%w: %s: %w", store.ErrUnavailable, op, err)
}

// writerFunc is a function that is an io.Writer.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
