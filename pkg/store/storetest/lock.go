package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

func testLock(t *testing.T, e Engine) {
	stores := e.handles(t, 2)
	acquire := func(s store.Store, name string) store.Lock {
		l, err := s.Lock(t.Context(), name)
		if err != nil {
			t.Fatalf("Lock(%q): %v", name, err)
		}
		return l
	}
	first, other := acquire(stores[0], "a"), acquire(stores[1], "b")
	defer other.Unlock()
	soon, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := stores[1].Lock(soon, "a")
	wantErr(t, "Lock of what another holds", err, context.DeadlineExceeded)

	rev, err := first.Update(t.Context(), func(tx store.RWTx) error {
		tx.Put("k", []byte("held"))
		return nil
	})
	if err != nil || rev != head(t, stores[1]) {
		t.Errorf("Update under the lock = %d, %v", rev, err)
	}
	select {
	case <-first.Lost():
		t.Error("lost while held")
	default:
	}
	first.Unlock()
	first.Unlock()
	<-first.Lost()
	second := acquire(stores[1], "a")
	first.Unlock() // Not second's.
	_, err = first.Update(t.Context(), func(tx store.RWTx) error {
		tx.Put("k", []byte("lost"))
		return nil
	})
	wantErr(t, "Update under a lock that was given up", err, store.ErrLockLost)
	if _, err := second.Update(t.Context(), func(tx store.RWTx) error {
		kv, err := tx.Get("k")
		if err != nil || string(kv.Value) != "held" {
			return fmt.Errorf("found %q, %w", kv.Value, err)
		}
		return nil
	}); err != nil {
		t.Errorf("Update of the second holder: %v", err)
	}
	want := errors.New("no")
	_, err = second.Update(t.Context(), func(store.RWTx) error { return want })
	wantErr(t, "Update whose function fails", err, want)
	second.Unlock()
}

// testLockExcludes increments a counter in two steps, which only one holder at
// a time survives.
func testLockExcludes(t *testing.T, e Engine) {
	const clients, rounds = 6, 15
	stores := e.handles(t, clients)
	put(t, stores[0], "n", "0")
	var inside atomic.Int64
	var g errgroup.Group
	for i := range clients {
		g.Go(func() error {
			for range rounds {
				l, err := stores[i].Lock(t.Context(), "counter")
				if err != nil {
					return err
				}
				if n := inside.Add(1); n != 1 {
					return fmt.Errorf("%d hold the lock", n)
				}
				err = countUp(t.Context(), stores[i], l)
				inside.Add(-1)
				l.Unlock()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	wantContent(t, stores[0], "", map[string]string{"n": strconv.Itoa(clients * rounds)})
}

// countUp reads in one transaction and writes in another.
func countUp(ctx context.Context, s store.Store, l store.Lock) error {
	var n int
	if err := s.View(ctx, func(tx store.Tx) error {
		kv, err := tx.Get("n")
		if err != nil {
			return err
		}
		n, err = strconv.Atoi(string(kv.Value))
		return err
	}); err != nil {
		return err
	}
	_, err := l.Update(ctx, func(tx store.RWTx) error {
		tx.Put("n", []byte(strconv.Itoa(n+1)))
		return nil
	})
	return err
}
