package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

// feed fills the ring from one watch of etcd, which all watchers of this
// process share.
type feed struct {
	store *Store
	beat  time.Duration // after as much silence it asks whether there is something

	at    int64 // etcd's revision up to which all has been fed
	count int64 // of Updates until then: what etcd calls the version of the head

	begun int64 // where the watch that runs began
	told  int64 // by its last note of progress

	// The Update that is being put together; head is its last event.
	rev    int64
	events []store.Event
}

var (
	// errGap ends a watch whose next events etcd does not have any more.
	errGap = errors.New("the history that was not seen yet is compacted")
	// errDisorder ends a watch that has events for an Update that is complete.
	errDisorder = errors.New("an event came after the end of its transaction")
	// errMissed ends a watch that left out an Update. Members of etcd before
	// 3.5.8 can say that a watch has got further than it has, and then it is
	// resumed from there.
	errMissed = errors.New("the watch left out an update")
	// errSilent ends a watch over which nothing comes, not even the answer to
	// whether there is something: its member may hang.
	errSilent = errors.New("the member does not answer")
)

// maxStuck is how many watches in a row may be silent from the same revision
// on, and were never answered. A member answers a watch only when it has walked
// all the history since then, that of others in its etcd too, and one that needs
// longer than it is given would begin again at the same place for ever. Reading
// the store anew does not depend on that.
const maxStuck = 3

// leastBeat is how long a watch is left alone at least: one that begins with what
// has been is not answered before its member's next round over such watches, of
// which there are ten a second.
const leastBeat = 200 * time.Millisecond

func newFeed(s *Store, m moment) *feed {
	return &feed{store: s, beat: max(s.cfg.RequestTimeout/3, leastBeat), at: m.at, count: m.count}
}

// run follows etcd until ctx ends. While etcd is away it tries again; what the
// ring cannot get any more, its watchers are told of by ErrCompacted.
func (f *feed) run(ctx context.Context) {
	s := f.store
	pause := firstPause
	stuck := 0 // watches in a row that were silent, never answered, and got no further
	for ctx.Err() == nil {
		begin, from := time.Now(), f.at
		err := f.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		s.metrics.feedBreaks.Inc()
		stuck++
		if f.at > from || f.told > 0 || !errors.Is(err, errSilent) {
			stuck = 0
		}
		if stuck >= maxStuck || errors.Is(err, errGap) || errors.Is(err, errDisorder) || errors.Is(err, errMissed) {
			err = errors.Join(err, f.skip(ctx))
			stuck = 0
		}
		if time.Since(begin) > time.Minute {
			pause = firstPause
		}
		s.cfg.Logger.WarnContext(ctx, "following etcd was interrupted", telemetry.Err, explain("watching", err), telemetry.Retry, pause)
		sleep(ctx, pause)
		pause = min(2*pause, 2*time.Second)
	}
}

// skip goes on at the present.
func (f *feed) skip(ctx context.Context) error {
	m, err := f.store.begin(ctx, "")
	if err != nil {
		return err
	}
	f.store.ring.Reset(m.rev)
	f.at, f.count, f.rev, f.events = m.at, m.count, 0, nil
	return nil
}

// watch feeds the ring until the watch ends.
func (f *feed) watch(ctx context.Context) error {
	s := f.store
	// A watcher of its own, so that the next one gets a connection of its own.
	w := clientv3.NewWatcher(s.client)
	defer w.Close() //nolint:errcheck // Why it ended is known.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// It begins with what has been fed: one that begins after etcd's newest
	// revision is not answered before somebody writes.
	f.begun, f.told, f.rev, f.events = f.at, 0, 0, nil
	responses := w.Watch(ctx, s.at.head(), clientv3.WithRange(s.at.dataEnd()), clientv3.WithRev(f.at), clientv3.WithFragment())
	beat := time.NewTicker(f.beat)
	defer beat.Stop()
	for asked := false; ; {
		select {
		case resp, ok := <-responses:
			if !ok {
				return errors.New("the watch ended by itself")
			}
			asked = false
			if err := f.takeAll(resp); err != nil {
				return err
			}
		case <-beat.C:
			if asked {
				return errSilent
			}
			asked = true
			if err := f.ask(ctx, w); err != nil {
				return err
			}
			beat.Reset(f.beat) // The answer has all of one, however long asking took.
		}
	}
}

// ask wants a sign of life. It waits while the watch is being moved to another
// member.
func (f *feed) ask(ctx context.Context, w clientv3.Watcher) error {
	once, cancel := context.WithTimeout(ctx, f.store.cfg.RequestTimeout)
	defer cancel()
	err := w.RequestProgress(once)
	if err != nil && ctx.Err() == nil && once.Err() != nil {
		return errSilent
	}
	return err
}

func (f *feed) takeAll(resp clientv3.WatchResponse) error {
	if err := resp.Err(); err != nil {
		if errors.Is(err, rpctypes.ErrCompacted) {
			return errGap
		}
		return err
	}
	for _, e := range resp.Events {
		if err := f.take(e); err != nil {
			return err
		}
	}
	if resp.IsProgressNotify() {
		f.progress(resp.Header.Revision)
	}
	return nil
}

// progress takes note that nothing of ours is left until rev, so that the next
// watch begins there and not at our last Update: others may have written much
// since, and compacted it. It believes a note when the next one comes, because
// members of etcd before 3.5.8 can send one ahead of the events it speaks of.
func (f *feed) progress(rev int64) {
	if len(f.events) == 0 {
		f.at = max(f.at, f.told)
	}
	f.told = rev
}

// take adds an event. etcd tells the changes of a transaction in the order in
// which they were asked for, in one message or several.
func (f *feed) take(e *clientv3.Event) error {
	s := f.store
	if e.Kv.ModRevision == f.begun {
		return nil // It has been fed.
	}
	if e.Kv.ModRevision <= f.at {
		return fmt.Errorf("%w: revision %d", errDisorder, e.Kv.ModRevision)
	}
	if e.Kv.ModRevision != f.rev {
		f.rev, f.events = e.Kv.ModRevision, nil // What has no head was no Update's.
	}
	if !s.at.isHead(e.Kv.Key) {
		f.add(e)
		return nil
	}
	if e.Type == clientv3.EventTypePut {
		if e.Kv.Version != f.count+1 {
			return fmt.Errorf("%w: number %d came after %d", errMissed, e.Kv.Version, f.count)
		}
		f.count = e.Kv.Version
	}
	f.at = f.rev
	if len(f.events) > 0 && e.Type == clientv3.EventTypePut {
		slices.SortFunc(f.events, func(a, b store.Event) int { return strings.Compare(a.Key, b.Key) })
		s.ring.Publish(store.Batch{Revision: store.Revision(f.rev), Events: f.events})
	}
	f.rev, f.events = 0, nil
	return nil
}

// add adds an event that is not the last of its Update.
func (f *feed) add(e *clientv3.Event) {
	if !f.store.at.isData(e.Kv.Key) {
		return // Somebody else's.
	}
	ev := store.Event{Key: f.store.at.key(e.Kv.Key)}
	if e.Type == clientv3.EventTypePut {
		ev.Value = append(make([]byte, 0, len(e.Kv.Value)), e.Kv.Value...)
	}
	f.events = append(f.events, ev)
}
