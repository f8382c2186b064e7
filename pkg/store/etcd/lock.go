package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/credence-id/credence/pkg/store"
)

// locks are the locks that this process holds or waits for. Callers of one
// process queue here, so that only one of them asks etcd.
type locks struct {
	mu   sync.Mutex
	free map[string]chan struct{} // guarded by mu; holds one token when free
	held map[*lock]struct{}       // guarded by mu
}

func newLocks() *locks {
	return &locks{free: make(map[string]chan struct{}), held: make(map[*lock]struct{})}
}

// lock implements store.Lock: a key of etcd bound to a lease. It is held while
// the key that was made then is there.
type lock struct {
	store *Store
	key   string
	since int64 // the revision that made the key: the fence of its Updates
	lease clientv3.LeaseID
	free  chan struct{} // gets the token back

	lost     chan struct{}
	loseOnce sync.Once
	unlock   sync.Once
	stop     context.CancelFunc // of keeping the lease
	keeping  sync.WaitGroup
}

// Lock implements store.Store. A holder that dies loses the lock LockTTL later;
// one that cannot reach etcd for so long says itself that it is lost.
func (s *Store) Lock(ctx context.Context, name string) (store.Lock, error) {
	done, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	waiting, stop := s.untilClose(ctx)
	defer stop()
	free := s.locks.named(name)
	select {
	case <-free:
	case <-waiting.Done():
		return nil, context.Cause(waiting)
	}
	l, err := s.acquire(waiting, s.at.lock(name))
	if err != nil {
		free <- struct{}{}
		if waiting.Err() != nil {
			return nil, context.Cause(waiting)
		}
		return nil, err
	}
	l.free = free
	s.locks.add(l)
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

func (ls *locks) add(l *lock) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.held[l] = struct{}{}
}

// close gives up all that are held.
func (ls *locks) close() {
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

// acquire waits until the key is gone and makes it.
func (s *Store) acquire(ctx context.Context, key string) (*lock, error) {
	for {
		var there *clientv3.GetResponse
		if err := s.attempt(ctx, "waiting for a lock", func(ctx context.Context) (err error) {
			there, err = s.client.Get(ctx, key)
			return err
		}); err != nil {
			return nil, err
		}
		if len(there.Kvs) > 0 {
			s.waitGone(ctx, key, there.Header.Revision)
			continue
		}
		l, err := s.makeLock(ctx, key)
		if l != nil || err != nil {
			return l, err
		}
	}
}

// waitGone returns when the key was deleted after the revision, or when it is
// time to look again.
func (s *Store) waitGone(ctx context.Context, key string, after int64) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range s.client.Watch(ctx, key, clientv3.WithRev(after+1), clientv3.WithFilterPut()) {
		if len(resp.Events) > 0 {
			return
		}
		if resp.Err() != nil {
			sleep(ctx, lastPause)
			return
		}
	}
}

// makeLock makes the key with a lease of its own; nil if another was faster.
func (s *Store) makeLock(ctx context.Context, key string) (*lock, error) {
	asked := time.Now()
	limited, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), s.cfg.RequestTimeout)
	defer cancel()
	lease, err := s.client.Grant(limited, int64((s.cfg.LockTTL+time.Second-1)/time.Second))
	if err != nil {
		return nil, explain("taking a lock", err)
	}
	host, _ := os.Hostname() // It is only shown.
	resp, err := s.client.Txn(limited).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, fmt.Sprintf("%s, process %d", host, os.Getpid()), clientv3.WithLease(lease.ID))).
		Commit()
	if err == nil && resp.Succeeded {
		l := &lock{store: s, key: key, since: resp.Header.Revision, lease: lease.ID, lost: make(chan struct{})}
		life, stop := context.WithCancel(s.life)
		l.stop = stop
		l.keeping.Go(func() { l.keep(life, asked, time.Duration(lease.TTL)*time.Second) })
		return l, nil
	}
	s.revoke(lease.ID) // Also if the key was made and nobody said so.
	if err != nil {
		return nil, explain("taking a lock", err)
	}
	return nil, nil
}

// revoke ends a lease and deletes its key, or leaves it to run out.
func (s *Store) revoke(id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(s.life, s.cfg.RequestTimeout/3)
	defer cancel()
	_, _ = s.client.Revoke(ctx, id) // It ends by itself.
}

// keep renews the lease three times in its life, until ctx ends or the lease
// has. What counts is when a renewal was asked for: etcd counts from later.
func (l *lock) keep(ctx context.Context, renewed time.Time, ttl time.Duration) {
	for pause := ttl / 3; ; {
		timer := time.NewTimer(min(pause, time.Until(renewed.Add(ttl))))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		asked := time.Now()
		once, cancel := context.WithDeadline(clientv3.WithRequireLeader(ctx), earlier(asked.Add(ttl/3), renewed.Add(ttl)))
		_, err := l.store.client.KeepAliveOnce(once, l.lease)
		cancel()
		switch {
		case err == nil:
			renewed, pause = asked, ttl/3
		case ctx.Err() != nil:
			return
		case errors.Is(err, rpctypes.ErrLeaseNotFound), !time.Now().Before(renewed.Add(ttl)):
			l.lose()
			return
		default:
			pause = firstPause
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Update implements store.Lock. The commit compares the lock's key, so that
// nothing of a holder that is late gets through.
func (l *lock) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	if l.store.isClosed() {
		return 0, store.ErrClosed
	}
	select {
	case <-l.lost:
		return 0, store.ErrLockLost
	default:
	}
	return l.store.update(ctx, l, fn)
}

// keyOrNone is the lock's key; none without a lock.
func (l *lock) keyOrNone() string {
	if l == nil {
		return ""
	}
	return l.key
}

// Lost implements store.Lock.
func (l *lock) Lost() <-chan struct{} { return l.lost }

func (l *lock) lose() { l.loseOnce.Do(func() { close(l.lost) }) }

// Unlock implements store.Lock. If etcd cannot be told, the lock ends when its
// lease runs out.
func (l *lock) Unlock() {
	l.unlock.Do(func() {
		l.lose()
		l.stop()
		l.keeping.Wait()
		l.store.revoke(l.lease)
		ls := l.store.locks
		ls.mu.Lock()
		delete(ls.held, l)
		ls.mu.Unlock()
		l.free <- struct{}{}
	})
}
