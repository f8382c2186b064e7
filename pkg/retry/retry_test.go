package retry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/credence-id/credence/pkg/retry"
)

// errBroken is one that the library would end for.
var errBroken = backoff.Permanent(errors.New("broken"))

// TestForever: pauses grow, and begin anew after a run that went well for long.
func TestForever(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		lasts := []time.Duration{0, 0, 0, retry.Most, 0, 0, 0, 0, 2 * retry.Most, 0}
		grow := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 1}
		runs, told := 0, 0
		var ended time.Time
		err := retry.Forever(ctx, func(ctx context.Context) error {
			if runs > 0 && time.Since(ended) < grow[runs-1]*time.Second*3/4 {
				t.Errorf("run %d began %v after the one before", runs, time.Since(ended))
			}
			runs++
			if runs == len(lasts) {
				cancel()
				return ctx.Err()
			}
			time.Sleep(lasts[runs-1])
			ended = time.Now()
			return errBroken
		}, func(err error, pause time.Duration) {
			if want := grow[told] * time.Second; !errors.Is(err, errBroken) || pause < want*3/4 || pause > want*5/4+1 {
				t.Errorf("failure %d: %v, again in %v, want about %v", told, err, pause, want)
			}
			told++
		})
		if !errors.Is(err, context.Canceled) || runs != len(lasts) || told != len(grow) {
			t.Errorf("ended with %v after %d runs and %d failures", err, runs, told)
		}
	})
}

// TestForeverEnds: at once with its context, also in a pause, and not when what it
// runs ends without an error.
func TestForeverEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		begin := time.Now()
		told := 0
		err := retry.Forever(ctx, func(context.Context) error { return nil }, func(err error, _ time.Duration) {
			told++
			if err == nil {
				t.Error("an end without a reason")
			}
		})
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took != time.Millisecond || told != 1 {
			t.Errorf("ended with %v after %v, told %d times", err, took, told)
		}
	})
}
