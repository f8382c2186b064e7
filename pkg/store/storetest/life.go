package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

// testCancel ends contexts before, while and after an Update waits. However it
// goes, the error tells the truth about the write.
func testCancel(t *testing.T, e Engine) {
	s := e.fresh(t)
	put(t, s, "there", "")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(store.RWTx) error { t.Error("an Update ran after its context had ended"); return nil }
	_, err := s.Update(gone, never)
	wantErr(t, "Update", err, context.Canceled)
	wantErr(t, "View", s.View(gone, func(store.Tx) error { return nil }), context.Canceled)
	_, err = s.Head(gone)
	wantErr(t, "Head", err, context.Canceled)
	wantErr(t, "Check", s.Check(gone), context.Canceled)
	_, err = s.Backup(gone, io.Discard)
	wantErr(t, "Backup", err, context.Canceled)
	_, err = s.Lock(gone, "lock")
	wantErr(t, "Lock", err, context.Canceled)

	const clients, updates = 8, 40
	var g errgroup.Group
	var committed atomic.Int64
	for client := range clients {
		g.Go(func() error {
			for n := range updates {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n*client)*10*time.Microsecond)
				key := fmt.Sprintf("k/%d/%d", client, n)
				ran := false
				_, err := s.Update(ctx, func(tx store.RWTx) error {
					ran = true
					tx.Put(key, nil)
					return nil
				})
				cancel()
				found := false
				if err := s.View(t.Context(), func(tx store.Tx) error {
					_, err := tx.Get(key)
					found = err == nil
					return nil
				}); err != nil {
					return err
				}
				switch {
				case err == nil && !found:
					return fmt.Errorf("%s returned and is not there", key)
				case err != nil && !errors.Is(err, context.DeadlineExceeded):
					return fmt.Errorf("%s: %w", key, err)
				case err != nil && !ran && found:
					return fmt.Errorf("%s never ran and is there", key)
				case err == nil:
					committed.Add(1)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d updates committed before their contexts ended", committed.Load(), clients*updates)
}

// testClose closes while everything is in use.
func testClose(t *testing.T, e Engine) {
	s := e.fresh(t)
	put(t, s, "a", "1")
	lock, err := s.Lock(t.Context(), "held")
	if err != nil {
		t.Fatalf("Lock: %v", err)
	}
	inView, leaveView := make(chan struct{}), make(chan struct{})
	var viewDone atomic.Bool
	var g errgroup.Group
	g.Go(func() error {
		return s.View(t.Context(), func(tx store.Tx) error {
			close(inView)
			<-leaveView
			_, err := tx.Get("a")
			viewDone.Store(true)
			return err
		})
	})
	<-inView
	for range 3 {
		g.Go(func() error {
			for _, err := range s.Watch(soon(t), "", 0) {
				if err != nil {
					if !errors.Is(err, store.ErrClosed) {
						return fmt.Errorf("watch: %w", err)
					}
					return nil
				}
			}
			return errors.New("a watch ended by itself")
		})
	}
	g.Go(func() error {
		_, err := s.Lock(t.Context(), "held")
		if !errors.Is(err, store.ErrClosed) {
			return fmt.Errorf("waiting for a lock: %w", err)
		}
		return nil
	})
	for range 4 { // Writers until they are told.
		g.Go(func() error {
			for {
				_, err := s.Update(t.Context(), func(tx store.RWTx) error {
					tx.Put("b", nil)
					return nil
				})
				if errors.Is(err, store.ErrClosed) {
					return nil
				}
				if err != nil {
					return fmt.Errorf("writer: %w", err)
				}
			}
		})
	}
	g.Go(func() error {
		time.Sleep(20 * time.Millisecond)
		close(leaveView)
		return nil
	})
	time.Sleep(5 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if !viewDone.Load() {
		t.Error("Close returned before a running View")
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	select {
	case <-lock.Lost():
	default:
		t.Error("a lock outlived its store")
	}
	wantClosed(t, s, lock)
}

func wantClosed(t *testing.T, s store.Store, lock store.Lock) {
	t.Helper()
	ctx := t.Context()
	never := func(store.RWTx) error { t.Error("an Update ran after Close"); return nil }
	_, err := s.Update(ctx, never)
	wantErr(t, "Update after Close", err, store.ErrClosed)
	_, err = lock.Update(ctx, never)
	wantErr(t, "Lock.Update after Close", err, store.ErrClosed)
	lock.Unlock()
	wantErr(t, "View after Close", s.View(ctx, func(store.Tx) error { t.Error("a View ran after Close"); return nil }), store.ErrClosed)
	_, err = s.Head(ctx)
	wantErr(t, "Head after Close", err, store.ErrClosed)
	wantErr(t, "Check after Close", s.Check(ctx), store.ErrClosed)
	_, err = s.Backup(ctx, io.Discard)
	wantErr(t, "Backup after Close", err, store.ErrClosed)
	_, err = s.Lock(ctx, "new")
	wantErr(t, "Lock after Close", err, store.ErrClosed)
	p := pullWatch(ctx, s, "", 0)
	defer p.stop()
	p.wantEnd(t, "Watch after Close", store.ErrClosed)
	wantErr(t, "Close after Close", s.Close(), store.ErrClosed)
}

func testReopen(t *testing.T, e Engine) {
	open := e.New(t)
	s := open(t)
	put(t, s, "a", "1", "b", "1")
	update(t, s, func(tx store.RWTx) { tx.Delete("b") })
	at, info := head(t, s), s.Info()
	if err := s.Check(t.Context()); err != nil || head(t, s) != at {
		t.Errorf("Check: %v, and the head is %d, was %d", err, head(t, s), at)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	s = open(t)
	if diff := cmp.Diff(info, s.Info()); diff != "" {
		t.Errorf("Info after opening again (-want +got):\n%s", diff)
	}
	if got := wantContent(t, s, "", map[string]string{"a": "1"}); got != at {
		t.Errorf("opened at revision %d, was %d", got, at)
	}
	next := put(t, s, "c", "1")
	if next <= at {
		t.Errorf("after %d came revision %d", at, next)
	}
	for b, err := range s.Watch(soon(t), "", at) {
		if err != nil || b.Revision != next {
			t.Errorf("watch from before: batch %d, %v; want %d", b.Revision, err, next)
		}
		break
	}
	// Older history is either whole or compacted.
	got, err := follow(soon(t), s, "", map[string]string{}, 0, next)
	if err != nil {
		wantErr(t, "watching older history", err, store.ErrCompacted)
		return
	}
	wantContent(t, s, "", got)
}

// testBackup copies while writers write, and compares the copy with what a
// watcher made of the batches up to its revision. The copy is another store: it
// has an ID of its own, and revisions that say nothing about the first one's.
func testBackup(t *testing.T, e Engine) {
	s := e.fresh(t)
	j := &journal{batches: make(map[store.Revision]map[string]string)}
	var writers errgroup.Group
	for client := range 4 {
		writers.Go(func() error { return j.write(t.Context(), s, client, 60) })
	}
	type copied struct {
		rev store.Revision
		buf bytes.Buffer
	}
	copies := make([]copied, 5)
	for i := range copies {
		time.Sleep(3 * time.Millisecond)
		var err error
		if copies[i].rev, err = s.Backup(t.Context(), &copies[i].buf); err != nil {
			t.Fatalf("Backup: %v", err)
		}
	}
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, c := range copies {
		want, err := follow(soon(t), s, "", map[string]string{}, 0, c.rev)
		if err != nil {
			t.Fatal(err)
		}
		restored := e.Restore(t, &c.buf)(t)
		if restored.Info().ID == s.Info().ID {
			t.Error("the copy has the ID of the store it was made of")
		}
		at := wantContent(t, restored, "", want)
		if got := put(t, restored, "more", ""); got <= at {
			t.Errorf("after %d came revision %d", at, got)
		}
	}
	_, err := s.Backup(t.Context(), brokenPipe{})
	wantErr(t, "Backup to a writer that fails", err, io.ErrClosedPipe)
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
