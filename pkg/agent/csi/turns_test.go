package csi

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		release, err := turns.take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		// Another key is free, the same one is not.
		other, err := turns.take(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := turns.take(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want to have waited", err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			release, err := turns.take(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			release()
		})
		synctest.Wait()
		release()
		other()
		wg.Wait()
		if len(turns.keys) != 0 || turns.total != 0 {
			t.Errorf("%d keys and %d callers are left", len(turns.keys), turns.total)
		}
	})
}

// TestTurnsAreBounded: few have a turn at once, and not everybody may wait.
func TestTurnsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range maxWaiting {
			wg.Go(func() {
				release, err := turns.take(ctx, strconv.Itoa(i))
				if err == nil {
					<-ctx.Done()
					release()
				}
			})
		}
		synctest.Wait()
		if n := len(turns.slots); n != maxAtOnce {
			t.Errorf("%d have a turn, want %d", n, maxAtOnce)
		}
		if _, err := turns.take(ctx, "x"); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%v, want ResourceExhausted", err)
		}
		cancel()
		wg.Wait()
		if len(turns.keys) != 0 || turns.total != 0 || len(turns.slots) != 0 {
			t.Errorf("%d keys, %d callers and %d turns are left", len(turns.keys), turns.total, len(turns.slots))
		}
	})
}
