package etcd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/credence-id/credence/pkg/store/engine"
)

// Store is an open store in etcd. It implements store.Store.
type Store struct {
	cfg     Config
	at      layout
	client  *clientv3.Client
	info    store.Info
	record  string // of the store, byte for byte as it is in etcd
	ring    *engine.Ring
	locks   *locks
	metrics *metrics
	// slots bounds the Updates under way. One that keeps losing takes all.
	slots *semaphore.Weighted
	// client's share of the IDs of transactions, and the last of them.
	who [8]byte
	seq atomic.Uint64
	// down is set while etcd has not answered for a whole RequestTimeout: then
	// nobody is kept waiting for that long again.
	down atomic.Bool
	// refusing is why the last commit was not taken, nil if it was.
	refusing atomic.Pointer[error]

	// life is what the client and the goroutines below live in.
	life       context.Context
	die        context.CancelFunc
	background sync.WaitGroup

	mu      sync.Mutex
	closed  bool           // guarded by mu
	calls   sync.WaitGroup // Add only under mu and while !closed
	closing chan struct{}  // closed by Close
}

var _ store.Store = (*Store)(nil)

// Info implements store.Store.
func (s *Store) Info() store.Info { return s.info }

// Head implements store.Store: one read that a majority of etcd agrees on.
func (s *Store) Head(ctx context.Context) (store.Revision, error) {
	done, err := s.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	at, err := s.begin(ctx, "")
	return at.rev, err
}

// View implements store.Store. A View that reads for longer than etcd keeps
// history ends with ErrUnavailable.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	done, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	at, err := s.begin(ctx, "")
	if err != nil {
		return err
	}
	return fn(&snapshot{store: s, ctx: ctx, moment: at})
}

// Backup implements store.Store: w receives the stream of package dump, which
// dump.Read writes into an empty store of any engine.
func (s *Store) Backup(ctx context.Context, w io.Writer) (store.Revision, error) {
	sum, err := dump.Write(ctx, s, w, nil)
	return sum.Revision, err
}

// enter registers a call that Close will wait for.
func (s *Store) enter(ctx context.Context) (done func(), err error) {
	if err := ctx.Err(); err != nil && !s.isClosed() {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	s.calls.Add(1)
	return s.calls.Done, nil
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// untilClose is a context that ends also when Close is called, with ErrClosed
// as its cause: for waiting, not for work.
func (s *Store) untilClose(ctx context.Context) (context.Context, func()) {
	out, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-s.closing:
			cancel(store.ErrClosed)
		case <-out.Done():
		}
	})
	return out, func() { cancel(context.Canceled); watching.Wait() }
}

// Close implements store.Store. Locks are given up, so that others need not
// wait for them to run out.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return store.ErrClosed
	}
	s.closed = true
	close(s.closing)
	s.mu.Unlock()

	s.locks.close()
	s.ring.End(store.ErrClosed)
	s.calls.Wait()
	s.locks.close() // Those that were just being taken.
	s.die()
	s.background.Wait()
	s.metrics.all.Unregister(s.cfg.Registerer)
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("store: closing the connection to etcd: %w", err)
	}
	return nil
}

// moment is a point in etcd's history at which a transaction reads.
type moment struct {
	at    int64          // etcd's revision
	rev   store.Revision // of the last Update until then
	count int64          // of Updates until then, and one for making the store
	fence int64          // of the record of the store
	held  int64          // since which revision the lock asked for is held; 0: it is not
}

// begin asks a majority for the present moment. lock, if not empty, is the key
// of a lock to look at.
func (s *Store) begin(ctx context.Context, lock string) (m moment, err error) {
	ops := s.momentOps(lock)
	err = s.attempt(ctx, "reading the head", func(ctx context.Context) error {
		resp, err := s.client.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return err
		}
		m, err = s.moment(resp)
		return err
	})
	return m, err
}

// momentOps read what moment takes apart.
func (s *Store) momentOps(lock string) []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpGet(s.at.head()), clientv3.OpGet(s.at.store())}
	if lock != "" {
		ops = append(ops, clientv3.OpGet(lock))
	}
	return ops
}

// moment reads the answers to momentOps, which are the first of resp.
func (s *Store) moment(resp *clientv3.TxnResponse) (moment, error) {
	kv := func(i int) *mvccpb.KeyValue {
		if i < len(resp.Responses) {
			if r := resp.Responses[i].GetResponseRange(); r != nil && len(r.Kvs) > 0 {
				return r.Kvs[0]
			}
		}
		return nil
	}
	head, record, lock := kv(0), kv(1), kv(2)
	if head == nil || record == nil || string(record.Value) != s.record {
		return moment{}, s.gone()
	}
	m := moment{at: resp.Header.Revision, rev: revision(head), count: head.Version, fence: record.ModRevision}
	if lock != nil {
		m.held = lock.CreateRevision
	}
	return m, nil
}

// gone is the answer once somebody has removed or replaced the store.
func (s *Store) gone() error {
	return fmt.Errorf("%w: the store below %s in etcd was removed or replaced since it was opened, nothing was written; restart to use what is there now",
		store.ErrUnavailable, s.cfg.Prefix)
}

// revision is the store's, given the key head.
func revision(head *mvccpb.KeyValue) store.Revision {
	if head.Version <= 1 {
		return 0 // As the store was made; nothing has been committed.
	}
	return store.Revision(head.ModRevision)
}

// Pauses between attempts to reach etcd.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// attempt makes a call that changes nothing until it succeeds, fails for good,
// or RequestTimeout is over. A member that hangs is given a third of that, and
// the next attempt goes to another one. An error of do that is ours ends it.
func (s *Store) attempt(ctx context.Context, what string, do func(context.Context) error) error {
	limited, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), s.cfg.RequestTimeout)
	defer cancel()
	var last error
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		once, cancel := context.WithTimeout(limited, s.cfg.RequestTimeout/3)
		err := do(once)
		cancel()
		if err == nil {
			s.down.Store(false)
			return nil
		}
		if errors.Is(err, store.ErrUnavailable) {
			return err
		}
		if ended := ended(ctx, once, err); ended != nil {
			return ended
		}
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = err // What a member said is better than that the time is over.
		}
		if !passing(err) || s.down.Load() || !sleep(limited, pause) {
			break
		}
	}
	s.metrics.failed(diagnose(last))
	if passing(last) {
		s.down.Store(true)
	}
	return explain(what, last)
}

// ended says whether err is only that ctx has ended. A member, which is told of
// the deadline, may find that it is over a moment before this process does.
func ended(ctx, once context.Context, err error) error {
	deadline, bounded := ctx.Deadline()
	limit, _ := once.Deadline()
	if ctx.Err() == nil && bounded && !deadline.After(limit) && code(err) == codes.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// sleep waits for about the pause. It is false if ctx ends first.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause/2 + time.Duration(mathrand.Int64N(int64(pause)))) //nolint:gosec // No secret.
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// newID makes the ID of a transaction: 8 bytes of this process, 8 of a counter.
func (s *Store) newID() string {
	id := make([]byte, 0, 16)
	return string(binary.BigEndian.AppendUint64(append(id, s.who[:]...), s.seq.Add(1)))
}

func randomBytes(b []byte) { rand.Read(b) }
