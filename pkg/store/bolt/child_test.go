package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/store/storetest"
)

// childEnv tells this test binary to be the process that a crash test cuts
// off: "mode path clients updates". It reports on file descriptor 3.
const childEnv = "CREDENCE_STORE_TEST_CHILD"

const ackFD = 3

func TestMain(m *testing.M) {
	args := strings.Fields(os.Getenv(childEnv))
	if len(args) == 0 {
		os.Exit(m.Run())
	}
	if err := child(context.Background(), args); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

func child(ctx context.Context, args []string) error {
	clients, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	updates, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	s, err := bolt.Open(bolt.Config{Path: args[1]})
	if err != nil {
		return err
	}
	out := os.NewFile(ackFD, "acks")
	var mu sync.Mutex
	ack := func(a storetest.Ack) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := fmt.Fprintln(out, a)
		return err
	}
	if args[0] == "load" {
		err = storetest.CrashLoad(ctx, s, clients, updates, ack)
	} else {
		err = endureFaults(ctx, s, updates, ack)
	}
	return errors.Join(err, s.Close())
}

// endureFaults makes updates, of which the disk refuses some, and checks that
// the store is honest about each.
func endureFaults(ctx context.Context, s store.Store, updates int, ack func(storetest.Ack) error) error {
	done := 0
	for range updates {
		before, err := s.Head(ctx)
		if err != nil {
			return err
		}
		rev, err := storetest.CrashUpdate(ctx, s, 0, done+1)
		if err == nil {
			done++
			if err := ack(storetest.Ack{Client: 0, Update: done, Revision: rev}); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, store.ErrUnavailable) {
			return fmt.Errorf("update on a failing disk: %w", err)
		}
		if strings.Contains(err.Error(), "outcome is unknown") {
			return wantStopped(ctx, s, before)
		}
		if !strings.Contains(err.Error(), "nothing was written") {
			return fmt.Errorf("error does not say what became of the update: %w", err)
		}
		if err := wantAt(ctx, s, before); err != nil {
			return err
		}
	}
	return nil
}

// wantAt checks that a refused Update shows nowhere.
func wantAt(ctx context.Context, s store.Store, want store.Revision) error {
	now, err := s.Head(ctx)
	if err != nil {
		return fmt.Errorf("head after a refused update: %w", err)
	}
	return s.View(ctx, func(tx store.Tx) error {
		if now != want || tx.Revision() != want {
			return fmt.Errorf("after a refused update head is %d, view at %d, want %d", now, tx.Revision(), want)
		}
		return nil
	})
}

// wantStopped checks that a store that does not know its own state answers
// nothing.
func wantStopped(ctx context.Context, s store.Store, before store.Revision) error {
	_, headErr := s.Head(ctx)
	_, updateErr := s.Update(ctx, func(tx store.RWTx) error { tx.Put("never", nil); return nil })
	viewErr := s.View(ctx, func(store.Tx) error { return nil })
	var watchErr error
	for b, err := range s.Watch(ctx, "", before) {
		if watchErr = err; err == nil {
			return fmt.Errorf("batch %d was published though its commit failed", b.Revision)
		}
	}
	for _, err := range []error{headErr, updateErr, viewErr, watchErr} {
		if !errors.Is(err, store.ErrUnavailable) {
			return fmt.Errorf("a stopped store answered: head %w, update %w, view %w, watch %w", headErr, updateErr, viewErr, watchErr)
		}
	}
	return nil
}
