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
	"time"

	"golang.org/x/sync/errgroup"

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
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := child(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

// childEnviron is the environment of such a process.
func childEnviron(args string) []string {
	// The race detector's process would sleep for a second before it ends.
	return append(os.Environ(), childEnv+"="+args, "GORACE=atexit_sleep_ms=0")
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
func endureFaults(ctx context.Context, s *bolt.Store, updates int, ack func(storetest.Ack) error) error {
	done := 0
	for range updates {
		before, err := s.Head(ctx)
		if err != nil {
			return err
		}
		rev, seen, err := updateAndLook(ctx, s, done+1)
		if seen != (err == nil) {
			return fmt.Errorf("update %d ended with %w; that its neighbour saw it: %v", done+1, err, seen)
		}
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

// errSeen is what a neighbour answers that finds an update made.
var errSeen = errors.New("the update is there")

// updateAndLook makes an update and, in the same group, an Update that looks
// for it and fails. Its failure says that the update is there, so it may be
// returned only once that is on disk. A third one is last in line, and commits.
func updateAndLook(ctx context.Context, s *bolt.Store, n int) (rev store.Revision, seen bool, err error) {
	var g errgroup.Group
	var lookErr error
	begun := make(chan struct{})
	g.Go(func() error {
		<-begun
		_, lookErr = s.Update(ctx, func(tx store.RWTx) error {
			for kv, err := range tx.Scan("log/0/", fmt.Sprintf("log/0/%06d", n-1)) {
				if err != nil || kv.Key != fmt.Sprintf("log/0/%06d", n) {
					return fmt.Errorf("found %s: %w", kv.Key, err)
				}
				return errSeen
			}
			return nil
		})
		return nil
	})
	g.Go(func() error {
		<-begun
		for bolt.Queued(s) == 0 && ctx.Err() == nil {
			time.Sleep(10 * time.Microsecond)
		}
		_, _ = s.Update(ctx, func(store.RWTx) error { return nil }) // Fails with the group.
		return nil
	})
	rev, err = storetest.CrashUpdate(ctx, &joined{Store: s, begun: sync.OnceFunc(func() { close(begun) })}, 0, n)
	if err := g.Wait(); err != nil {
		return 0, false, err
	}
	return rev, errors.Is(lookErr, errSeen), err
}

// joined is a store whose Updates go on only when two others have queued.
type joined struct {
	*bolt.Store
	begun func()
}

func (j *joined) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	return j.Store.Update(ctx, func(tx store.RWTx) error {
		err := fn(tx)
		if err != nil {
			return err // The one that fails on purpose.
		}
		j.begun()
		for bolt.Queued(j.Store) < 2 && ctx.Err() == nil {
			time.Sleep(10 * time.Microsecond)
		}
		return nil
	})
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
