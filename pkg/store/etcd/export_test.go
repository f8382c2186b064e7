package etcd

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrMissed ends a watch of etcd that left out an Update.
var ErrMissed = errMissed

// FeedHeads gives a feed of its own, which is at the present, the heads of
// Updates of which as many were left out before each as left says.
func FeedHeads(ctx context.Context, s *Store, left ...int64) error {
	m, err := s.begin(ctx, "")
	if err != nil {
		return err
	}
	f := newFeed(s, m)
	for i, n := range left {
		e := &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{
			Key: []byte(s.at.head()), ModRevision: f.at + 1 + n, Version: f.count + 1 + n,
		}}
		if err := f.take(e); err != nil {
			return fmt.Errorf("head %d: %w", i, err)
		}
	}
	return nil
}

// Compact forgets the kept history up to the head.
func Compact(ctx context.Context, s *Store) error {
	head, err := s.Head(ctx)
	if err != nil {
		return err
	}
	if err := s.ring.Wait(ctx, head); err != nil {
		return err
	}
	s.ring.Reset(head)
	return nil
}

// KeepHistory compacts as Open does with a History that no configuration may
// have.
func KeepHistory(ctx context.Context, s *Store, history time.Duration) {
	s.compactForEver(ctx, history)
}

// FeedFrom follows etcd for a time from a revision of it on, as the feed does
// with this beat, and returns where the next watch would begin.
func FeedFrom(ctx context.Context, s *Store, rev int64, beat, d time.Duration) (int64, error) {
	m, err := s.begin(ctx, "")
	if err != nil {
		return 0, err
	}
	f := newFeed(s, m)
	f.at, f.beat = rev, beat
	limited, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	if err := f.watch(limited); limited.Err() == nil {
		return 0, err
	}
	return f.at, nil
}

// Beat is how long a watch may be silent, with a request_timeout, before it is
// asked whether there is something.
func Beat(requestTimeout time.Duration) time.Duration {
	return newFeed(&Store{cfg: Config{RequestTimeout: requestTimeout}}, moment{}).beat
}

// FeedNotes gives a feed that is at rev notes of progress, and returns where it
// is after each.
func FeedNotes(s *Store, rev int64, notes ...int64) (at []int64) {
	f := &feed{store: s, at: rev}
	for _, n := range notes {
		f.progress(n)
		at = append(at, f.at)
	}
	return at
}
