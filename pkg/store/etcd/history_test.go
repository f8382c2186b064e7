package etcd_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/etcd"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

func put(t testing.TB, s store.Store, key, value string) store.Revision {
	t.Helper()
	rev, err := s.Update(t.Context(), func(tx store.RWTx) error { tx.Put(key, []byte(value)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// TestCompactedWhileCutOff: what etcd forgot while this process could not see it
// is a gap, and whoever watches is told to read everything again.
func TestCompactedWhileCutOff(t *testing.T) {
	t.Parallel()
	endpoint := etcdtest.New(t)
	link := etcdtest.NewLink(t, endpoint)
	cfg := etcd.Config{Endpoints: []string{endpoint}, History: -1, RequestTimeout: time.Second}
	there := open(t, cfg)
	cfg.Endpoints = link.Endpoints()
	s := open(t, cfg)
	at := put(t, s, "k", "before")
	next, stop := iter.Pull2(s.Watch(t.Context(), "", 0))
	defer stop()
	if b, err, _ := next(); err != nil || b.Revision != at {
		t.Fatalf("first batch %+v, %v", b, err)
	}
	link.Cut()
	var last store.Revision
	for i := range 10 {
		last = put(t, there, "k", fmt.Sprint(i))
	}
	cli := etcdtest.NewClient(t, endpoint)
	defer cli.Close()
	if _, err := cli.Compact(t.Context(), int64(last)); err != nil {
		t.Fatal(err)
	}
	link.Drop()
	link.Heal()
	if b, err, _ := next(); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("after the gap: %+v, %v", b, err)
	}
	// As the contract says: read, and watch from there.
	var from store.Revision
	if err := s.View(t.Context(), func(tx store.Tx) error {
		from = tx.Revision()
		kv, err := tx.Get("k")
		if err != nil || string(kv.Value) != "9" || from != last {
			return fmt.Errorf("found %q at %d, %w", kv.Value, from, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	newest := put(t, there, "k", "new")
	for b, err := range s.Watch(t.Context(), "", from) {
		if err != nil || b.Revision != newest {
			t.Errorf("the next batch is %+v, %v", b, err)
		}
		break
	}
}

// TestCompactedWhileRead: a View whose revision is compacted under it ends with
// an error that says so; an Update begins anew.
func TestCompactedWhileRead(t *testing.T) {
	t.Parallel()
	endpoint := etcdtest.New(t)
	s := open(t, etcd.Config{Endpoints: []string{endpoint}, History: -1})
	cli := etcdtest.NewClient(t, endpoint)
	defer cli.Close()
	put(t, s, "a", "1")
	compact := func() {
		if _, err := cli.Compact(t.Context(), int64(put(t, s, "b", "1"))); err != nil {
			t.Fatal(err)
		}
	}
	err := s.View(t.Context(), func(tx store.Tx) error {
		compact()
		_, err := tx.Get("a")
		return err
	})
	wantUnavailable(t, "View", err, "read again")
	ran := 0
	if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
		if ran++; ran == 1 {
			compact()
		}
		if _, err := tx.Get("a"); err != nil {
			return err
		}
		tx.Put("c", nil)
		return nil
	}); err != nil || ran != 2 {
		t.Errorf("Update: %v after %d runs", err, ran)
	}
}

// TestHistory: one of two processes compacts what is older than History, and
// the other takes over.
func TestHistory(t *testing.T) {
	t.Parallel()
	endpoint := etcdtest.New(t)
	cfg := etcd.Config{Endpoints: []string{endpoint}, History: -1} // What Open does of itself is in the way.
	const history = 200 * time.Millisecond
	first := open(t, cfg)
	old := put(t, first, "k", "old")
	put(t, first, "k", "new")
	cli := etcdtest.NewClient(t, endpoint)
	defer cli.Close()
	compacted := func(rev store.Revision) {
		t.Helper()
		// What is compacted shows only to who asks.
		for ctx := t.Context(); ; {
			_, err := cli.Get(ctx, "/credence/k/k", clientv3.WithRev(int64(rev)))
			if err != nil && strings.Contains(err.Error(), "compacted") {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	run := func(s *etcd.Store) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { etcd.KeepHistory(ctx, s, history) })
		return func() { cancel(); wg.Wait() }
	}
	stopFirst := run(first)
	stopSecond := run(open(t, cfg))
	defer stopSecond()
	compacted(old)
	stopFirst()
	old = put(t, first, "k", "newer")
	put(t, first, "k", "newest")
	compacted(old)
}

// TestWatchOfEtcdLeavesOut: a watch of etcd that leaves out an Update is found
// out by the next one.
func TestWatchOfEtcdLeavesOut(t *testing.T) {
	t.Parallel()
	s := open(t, fresh(t))
	put(t, s, "k", "v")
	if err := etcd.FeedHeads(t.Context(), s, 0, 0, 0); err != nil {
		t.Errorf("with none left out: %v", err)
	}
	if err := etcd.FeedHeads(t.Context(), s, 0, 1); !errors.Is(err, etcd.ErrMissed) {
		t.Errorf("with one left out: %v", err)
	}
}

// TestWatchBeginsAtItsProgress: what others have written since our last Update
// is walked once, not again by each watch that is begun, and may be compacted.
func TestWatchBeginsAtItsProgress(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	s := open(t, cfg)
	put(t, s, "k", "v")
	cli := etcdtest.NewClient(t, cfg.Endpoints...)
	defer cli.Close()
	var begin, end int64
	for range 20 {
		resp, err := cli.Put(t.Context(), "/elsewhere", "foreign")
		if err != nil {
			t.Fatal(err)
		}
		begin, end = cmp.Or(begin, resp.Header.Revision), resp.Header.Revision
	}
	var at int64
	for d := time.Second; at < end; d *= 2 { // A busy machine may take its time to answer.
		var err error
		if at, err = etcd.FeedFrom(t.Context(), s, begin, d/5, d); d > time.Minute {
			t.Fatalf("in %v, the feed got to %d, %v; others have written until %d", d, at, err, end)
		}
	}
	if got, want := etcd.FeedNotes(s, 5, 7, 9, 3, 3, 20), []int64{5, 7, 9, 9, 9}; !slices.Equal(got, want) {
		t.Errorf("with notes 7, 9, 3, 3, 20 a feed at 5 got to %v, want each believed one note later: %v", got, want)
	}
}

// TestWatchOfIdleEtcd: a watch that is begun where nobody has written since is
// answered, and is not taken for one whose member hangs.
func TestWatchOfIdleEtcd(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	cfg.Endpoints = etcdtest.NewCluster(t, 1).Endpoints()
	s := open(t, cfg)
	put(t, s, "k", "v")
	cli := etcdtest.NewClient(t, cfg.Endpoints...)
	defer cli.Close()
	last, err := cli.Put(t.Context(), "/elsewhere", "foreign")
	if err != nil {
		t.Fatal(err)
	}
	at, err := etcd.FeedFrom(t.Context(), s, last.Header.Revision, time.Second, 3500*time.Millisecond)
	if err != nil || at != last.Header.Revision {
		t.Errorf("from the newest revision, %d, the feed got to %d, %v", last.Header.Revision, at, err)
	}
	// etcd looks at a watch that begins with what has been each 100 ms: a question
	// that comes before is lost.
	for timeout, want := range map[time.Duration]time.Duration{3 * time.Second: time.Second, 100 * time.Millisecond: 200 * time.Millisecond} {
		if got := etcd.Beat(timeout); got != want {
			t.Errorf("with a request_timeout of %v it is asked after %v, want %v", timeout, got, want)
		}
	}
}

// TestWatchThatIsResumed: one whose connection was away for longer than a beat has
// a beat to answer in when it is back.
func TestWatchThatIsResumed(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	there := open(t, cfg)
	link := etcdtest.NewLink(t, cfg.Endpoints...)
	cfg.Endpoints = link.Endpoints()
	s := open(t, cfg)
	begin := put(t, s, "k", "v")
	const beat = 1500 * time.Millisecond
	var away errgroup.Group
	away.Go(func() error {
		time.Sleep(beat * 3 / 2)
		link.Cut()
		link.Drop()
		time.Sleep(2 * beat) // It is asked after the first half of a beat.
		defer link.Heal()
		_, err := there.Update(t.Context(), func(tx store.RWTx) error { tx.Put("k", []byte("w")); return nil })
		return err
	})
	at, err := etcd.FeedFrom(t.Context(), s, int64(begin), beat, 6*beat)
	if err := away.Wait(); err != nil {
		t.Fatal(err)
	}
	if err != nil || at <= int64(begin) {
		t.Errorf("from %d on, the feed got to %d, %v", begin, at, err)
	}
}
