package etcd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// maxUpdates is how many Updates of one process are under way at a time;
	// the rest wait, first come first served.
	maxUpdates = 64
	// patience is how often an Update may lose against others before it has
	// this process to itself.
	patience = 3
	// maxTxnOps is etcd's limit for each list of a transaction, --max-txn-ops.
	maxTxnOps = 128
)

// Update implements store.Store. fn runs on the caller's goroutine, again after
// each commit that found something changed that was read, and then without
// asking etcd again for the keys that it read before.
func (s *Store) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	return s.update(ctx, nil, fn)
}

// update is Update, under a lock if there is one.
func (s *Store) update(ctx context.Context, l *lock, fn func(store.RWTx) error) (store.Revision, error) {
	done, err := s.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	slots, err := s.take(ctx, 1)
	if err != nil {
		return 0, err
	}
	defer func() { s.slots.Release(slots) }()

	var from *attempted // What the attempt before has learned.
	for try := 1; ; try++ {
		if try == patience {
			s.slots.Release(slots)
			slots = 0
			if slots, err = s.take(ctx, maxUpdates); err != nil {
				return 0, err
			}
			from = nil // It is old by now.
		}
		if from == nil {
			if from, err = s.attend(ctx, l); err != nil {
				return 0, err
			}
		}
		if l != nil && from.held != l.since {
			l.lose()
			return 0, store.ErrLockLost
		}
		rev, next, err := s.try(ctx, l, from, fn)
		if err != nil || next == nil {
			return rev, err
		}
		if err := s.again(ctx, try); err != nil {
			return 0, err
		}
		from = next
		if from.moment == (moment{}) {
			from = nil
		}
	}
}

// attempted is where an attempt begins: a moment, and what is known of it.
type attempted struct {
	moment
	known map[string]*mvccpb.KeyValue
}

// attend is a first attempt's beginning.
func (s *Store) attend(ctx context.Context, l *lock) (*attempted, error) {
	m, err := s.begin(ctx, l.keyOrNone())
	if err != nil {
		return nil, err
	}
	return &attempted{moment: m}, nil
}

// take waits for slots; 0 of them with an error.
func (s *Store) take(ctx context.Context, n int64) (int64, error) {
	if s.slots.TryAcquire(n) {
		return n, nil
	}
	waiting, done := s.untilClose(ctx)
	defer done()
	if err := s.slots.Acquire(waiting, n); err != nil {
		return 0, context.Cause(waiting)
	}
	return n, nil
}

// again is called before another attempt. Alone in its process, an Update can
// only have lost against another server: the pauses of the two differ.
func (s *Store) again(ctx context.Context, try int) error {
	s.metrics.conflicts.Inc()
	if s.isClosed() {
		return store.ErrClosed
	}
	if try > patience && !sleep(ctx, min(time.Millisecond<<min(try-patience, 6), 50*time.Millisecond)) || ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}

// try runs fn once and commits. If that lost against another Update, it returns
// from where to go on; an empty moment says anew.
func (s *Store) try(ctx context.Context, l *lock, from *attempted, fn func(store.RWTx) error) (store.Revision, *attempted, error) {
	tx := &rwtx{snapshot: snapshot{store: s, ctx: ctx, moment: from.moment}, known: from.known}
	err := fn(tx)
	switch {
	case tx.Err() != nil:
		return 0, nil, tx.Err()
	case tx.broken != nil && diagnose(tx.broken) == causeOld:
		return 0, &attempted{}, nil
	case tx.broken != nil:
		return 0, nil, tx.broken
	case err != nil:
		return 0, nil, err
	}
	if err := tx.fetchDeleted(); err != nil {
		return 0, nil, err
	}
	c := tx.commit(l)
	if len(c.changes) == 0 {
		return tx.rev, nil, nil
	}
	return c.run(ctx)
}

// fetchDeleted finds out which of the keys to delete are there, in one request.
func (t *rwtx) fetchDeleted() error {
	var keys []string
	var ops []clientv3.Op
	for _, w := range t.Writes() {
		if _, ok := t.known[w.Key]; w.IsDelete() && !ok {
			keys = append(keys, w.Key)
			ops = append(ops, clientv3.OpGet(t.store.at.data(w.Key), clientv3.WithRev(t.at), clientv3.WithKeysOnly()))
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return t.store.attempt(t.ctx, "reading keys", func(ctx context.Context) error {
		resp, err := t.store.client.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return err
		}
		t.learnAll(keys, resp.Responses)
		return nil
	})
}

func (t *rwtx) learnAll(keys []string, answers []*pb.ResponseOp) {
	for i, key := range keys {
		t.learn(key, first(answers[i]))
	}
}

// commit is one transaction of etcd.
type commit struct {
	tx      *rwtx
	lock    *lock
	id      string
	holds   []clientv3.Cmp // what must still be so
	changes []clientv3.Op
	reads   []string // keys to look at again if it is not
}

// commit makes the transaction: what was read must be as it was, then all
// writes, a mark in each table something is deleted from, and last the head.
func (t *rwtx) commit(l *lock) *commit {
	at := t.store.at
	c := &commit{tx: t, lock: l, id: t.store.newID()}
	c.holds = append(c.holds, clientv3.Compare(clientv3.ModRevision(at.store()), "=", t.fence))
	if l != nil {
		c.holds = append(c.holds, clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.since))
	}
	for key := range t.Gets() {
		c.unchanged(key)
	}
	marks := make(map[string]struct{})
	for _, w := range t.Writes() {
		if !w.IsDelete() {
			c.changes = append(c.changes, clientv3.OpPut(at.data(w.Key), string(w.Raw)))
			continue
		}
		if _, ok := t.Gets()[w.Key]; !ok {
			c.unchanged(w.Key)
		}
		if t.known[w.Key] != nil {
			c.changes = append(c.changes, clientv3.OpDelete(at.data(w.Key)))
			marks[table(w.Key)] = struct{}{}
		}
	}
	for _, seen := range t.scans {
		c.unchangedRange(seen)
	}
	if len(c.changes) == 0 {
		return c
	}
	for _, table := range slices.Sorted(maps.Keys(marks)) {
		c.changes = append(c.changes, clientv3.OpPut(at.gen(table), ""))
	}
	c.changes = append(c.changes, clientv3.OpPut(at.head(), c.id))
	return c
}

// unchanged guards a key that was read, or found absent.
func (c *commit) unchanged(key string) {
	var mod int64
	if kv := c.tx.known[key]; kv != nil {
		mod = kv.ModRevision
	}
	c.holds = append(c.holds, clientv3.Compare(clientv3.ModRevision(c.tx.store.at.data(key)), "=", mod))
	c.reads = append(c.reads, key)
}

// unchangedRange guards what a scan has seen: no key in it was put since, which
// etcd can compare, and none was deleted, which only the mark of the table
// tells. A prefix that may reach into several tables is guarded by all marks.
func (c *commit) unchangedRange(seen *scanned) {
	if seen.from >= seen.to {
		return // Nothing was looked at.
	}
	at := c.tx.store.at
	since := c.tx.at + 1
	mark := clientv3.Compare(clientv3.ModRevision(at.gen("")), "<", since).WithPrefix()
	if strings.Contains(seen.prefix, "/") {
		mark = clientv3.Compare(clientv3.ModRevision(at.gen(table(seen.prefix))), "<", since)
	}
	c.holds = append(c.holds, mark,
		clientv3.Compare(clientv3.ModRevision(seen.from), "<", since).WithRange(seen.to))
}

// run sends the transaction, and finds out what became of it if nobody says.
// Once it is sent, the caller's ctx does not end it.
func (c *commit) run(ctx context.Context) (store.Revision, *attempted, error) {
	s := c.tx.store
	otherwise := s.momentOps(c.lock.keyOrNone())
	c.reads = c.reads[:min(len(c.reads), maxTxnOps-len(otherwise))]
	skip := len(otherwise)
	for _, key := range c.reads {
		otherwise = append(otherwise, clientv3.OpGet(s.at.data(key)))
	}
	ctx = context.WithoutCancel(ctx)
	limited, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), s.cfg.RequestTimeout)
	defer cancel()
	start := time.Now()
	resp, err := s.client.Txn(limited).If(c.holds...).Then(c.changes...).Else(otherwise...).Commit()
	switch {
	case err == nil && resp.Succeeded:
		s.committed(time.Since(start))
		return store.Revision(resp.Header.Revision), nil, nil
	case err == nil:
		next, err := s.after(resp, c.reads, skip)
		return 0, next, err
	case diagnose(err) == causeQuota:
		rev, err := c.full(ctx, err)
		return rev, nil, err
	case refused(err):
		err = fmt.Errorf("%w; nothing was written", explain("committing", err))
		s.refused(err, diagnose(err))
		return 0, nil, err
	}
	return c.resolve(ctx, err)
}

// after is where to go on when a comparison did not hold: at the moment that
// etcd found it.
func (s *Store) after(resp *clientv3.TxnResponse, reads []string, skip int) (*attempted, error) {
	m, err := s.moment(resp)
	if err != nil {
		return nil, err
	}
	next := &attempted{moment: m, known: make(map[string]*mvccpb.KeyValue, len(reads))}
	for i, key := range reads {
		next.known[key] = first(resp.Responses[skip+i])
	}
	return next, nil
}

// committed and refused keep what Check and the metrics say of the last commit,
// and tell the log when that changes.
func (s *Store) committed(took time.Duration) {
	if s.refusing.Swap(nil) != nil {
		s.cfg.Logger.Info("etcd takes commits again")
	}
	s.metrics.commit.Observe(took.Seconds())
}

func (s *Store) refused(err error, why cause) {
	s.metrics.failures.Inc()
	s.metrics.failed(why)
	if s.refusing.Swap(&err) == nil {
		s.cfg.Logger.Error("etcd does not take commits", telemetry.Err, err)
	}
}
