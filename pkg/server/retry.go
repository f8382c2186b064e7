package server

import (
	"context"
	"math/rand/v2"
	"time"
)

// retryMin and retryMax bound the pauses between attempts to do what failed.
const (
	retryMin = time.Second
	retryMax = time.Minute
)

// jitter spreads a pause over ± 25 %.
func jitter(pause time.Duration) time.Duration {
	return pause*3/4 + time.Duration(rand.Int64N(int64(pause)/2+1)) //nolint:gosec // No secret.
}

// retry runs what is meant to run for ever again when it fails, after a pause
// that grows. failed is told of each failure. It returns when ctx ends.
func retry(ctx context.Context, run func(context.Context) error, failed func(err error, pause time.Duration)) error {
	pause := retryMin
	for {
		begin := time.Now()
		err := run(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(begin) > retryMax {
			pause = retryMin
		}
		wait := jitter(pause)
		pause = min(2*pause, retryMax)
		failed(err, wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}
