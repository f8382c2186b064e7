package bolt

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"go.etcd.io/bbolt"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/engine"
)

// Bounds of one group: they limit how long its first member waits and how much
// memory its dirty pages take.
const (
	maxGroupUpdates = 256
	maxGroupBytes   = 8 << 20
)

// fillPercent is how full a page is left when it splits. Most tables grow at
// their end, where bbolt's 0.5 leaves half of every page empty for good; more
// than this makes the tables whose keys are hashes split more often. Measured
// with 100,000 entries made in batches of 50: 66 MiB instead of 85 at 0.5; 67
// pages written for a batch at both, 85 at 0.95.
const fillPercent = 0.65

// group is a bbolt write transaction shared by the Updates that were waiting
// when it was open. Each runs its function on its own goroutine while it holds
// the turn; the last one in line commits for all. No leader, no timer: when
// nobody else waits, an Update commits at once.
type group struct {
	tx      *bbolt.Tx
	kv      *bbolt.Bucket
	base    store.Revision // Before the group.
	batches []store.Batch
	updates int
	bytes   int
	probe   bool // It is to be committed even if nothing was written.

	// err is set before done is closed.
	err  error
	done chan struct{}
}

func (g *group) revision() store.Revision { return g.base + store.Revision(len(g.batches)) }

func (g *group) full() bool { return g.updates >= maxGroupUpdates || g.bytes >= maxGroupBytes }

// Update implements store.Store. When ctx ends before fn has run, nothing
// happened; later, Update waits for the outcome of the disk write. fn runs
// once, on the caller's goroutine; while it does, no other Update goes on.
func (s *Store) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	if err := s.turns.take(ctx); err != nil {
		return 0, err
	}
	g, rev, err := s.join(ctx, fn)
	if g == nil {
		return 0, err
	}
	// Even a function that failed, or wrote nothing, waits: it may have read
	// what its neighbours wrote, and that is true only once it is on disk.
	<-g.done
	switch {
	case g.err != nil:
		return 0, g.err
	case err != nil:
		return 0, err
	}
	return rev, nil
}

// join runs fn as the next member of the open group and gives the turn away,
// even if fn panics. The group is nil if fn did not run.
func (s *Store) join(ctx context.Context, fn func(store.RWTx) error) (*group, store.Revision, error) {
	defer s.yieldTurn()
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if s.group == nil {
		g, err := s.beginGroup()
		if err != nil {
			return nil, 0, err
		}
		s.group = g
	}
	g := s.group
	rev, err := g.run(fn)
	return g, rev, err
}

func (s *Store) beginGroup() (*group, error) {
	if _, err := s.ring.Head(); err != nil {
		return nil, err
	}
	tx, err := s.db.Begin(true)
	if err != nil {
		return nil, unavailable("beginning to write", err)
	}
	snap := newSnapshot(tx)
	snap.kv.FillPercent = fillPercent
	return &group{tx: tx, kv: snap.kv, base: snap.rev, done: make(chan struct{})}, nil
}

// run executes one Update's function and, if it succeeds, adds its writes to
// the group under a revision of their own.
func (g *group) run(fn func(store.RWTx) error) (store.Revision, error) {
	g.updates++
	tx := &rwtx{&snapshot{kv: g.kv, rev: g.revision()}, engine.Buffer{Room: stampSize}}
	err := fn(tx)
	if tx.Err() != nil {
		return 0, tx.Err()
	}
	if err != nil {
		return 0, err
	}
	rev := g.revision() + 1
	events, err := tx.apply(g.kv, rev)
	if err != nil {
		// Not reachable with keys and values inside the limits; the bucket is
		// half changed, so nobody of this group may commit.
		g.err = fmt.Errorf("%w: %w; nothing was written", store.ErrUnavailable, err)
		return 0, err
	}
	if len(events) == 0 {
		return g.revision(), nil
	}
	g.batches = append(g.batches, store.Batch{Revision: rev, Events: events})
	g.bytes += tx.Bytes()
	return rev, nil
}

// yieldTurn lets the next caller join the group; when nobody waits, or the
// group is full, it commits the group first.
func (s *Store) yieldTurn() {
	g := s.group
	if g == nil {
		s.turns.release()
		return
	}
	if !g.full() {
		if s.turns.pass() {
			return
		}
		// A caller that splits its work starts several Updates at once: let
		// those that can run reach the queue. It saves such a caller a quarter
		// of its syncs, and is nothing beside one.
		runtime.Gosched()
		if s.turns.pass() {
			return
		}
	}
	s.group = nil
	s.commit(g)
	close(g.done)
	s.turns.release()
}

// commit writes the group to disk and publishes its batches, or sets g.err.
func (s *Store) commit(g *group) {
	if len(g.batches) == 0 && !g.probe || g.err != nil {
		if err := g.tx.Rollback(); err != nil && g.err == nil {
			g.err = unavailable("ending a transaction", err)
		}
		return
	}
	if err := s.inPlace(); err != nil {
		_ = g.tx.Rollback() // The reason it is given up is the one to tell.
		s.failing.Store(true)
		g.err = err
		return
	}
	start := time.Now()
	if err := g.write(); err != nil {
		g.err = s.afterFailure(g, err)
		return
	}
	s.failing.Store(false)
	s.metrics.committed(time.Since(start), len(g.batches))
	s.ring.Publish(g.batches...)
}

// inPlace refuses to write into a file that was removed or replaced: it would
// be gone with the process, and what was acknowledged with it.
func (s *Store) inPlace() error {
	now, err := os.Stat(s.cfg.Path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: the store's file is gone, nothing was written: %w; put it back, or restart to begin anew", store.ErrUnavailable, err)
	case !os.SameFile(s.file, now):
		return fmt.Errorf("%w: %s is not the file that was opened, nothing was written; restart to use it", store.ErrUnavailable, s.cfg.Path)
	}
	return nil
}

// write commits the bbolt transaction. A panic of bbolt means that it found
// its own structures broken; it must not leave the other callers waiting.
func (g *group) write() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("bbolt panicked: %v", r)
			_ = g.tx.Rollback() // Gives bbolt's write lock back, if it can.
		}
	}()
	if err := g.kv.SetSequence(uint64(g.revision())); err != nil {
		return err
	}
	return g.tx.Commit()
}

// afterFailure finds out what a failed commit left. If the file still shows
// the revision before it, nothing happened and the store goes on. Otherwise
// the new root was written but perhaps not synced: what is true is known only
// after the file has been opened again, so the store stops serving.
func (s *Store) afterFailure(g *group, cause error) error {
	s.metrics.failed()
	s.failing.Store(true)
	now, err := s.visible()
	if err == nil && now == g.base {
		return fmt.Errorf("%w: committing to %s: %w; nothing was written", store.ErrUnavailable, s.cfg.Path, cause)
	}
	err = fmt.Errorf("%w: committing to %s: %w; the outcome is unknown, restart to recover", store.ErrUnavailable, s.cfg.Path, cause)
	s.ring.End(err)
	return err
}

// visible is the revision that a new reader would see.
func (s *Store) visible() (rev store.Revision, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		rev = newSnapshot(tx).rev
		return nil
	})
	return rev, err
}
