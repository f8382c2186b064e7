// Package retry has what is tried again and again use one kind of pause: a
// second, then twice as long each time up to a minute, each spread over ± 25 % so
// that many do not come at once.
//
// It is for what goes on as long as its process does and has nobody who waits for
// it. Who gives up, or has somebody waiting, has rules of its own.
package retry

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Least and Most bound the pauses, before they are spread.
const (
	Least = time.Second
	Most  = time.Minute
)

// Pauses returns pauses that begin with Least, and do so again after Reset. It is
// used by one goroutine.
func Pauses() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: Least, RandomizationFactor: 0.25, Multiplier: 2, MaxInterval: Most}
}

var errEnded = errors.New("it ended by itself")

// Forever runs what is meant to run for ever, and again after a pause when it
// ends. After a run that lasted longer than Most pauses begin anew. failed is told
// of each end, why, and of the pause that follows. It returns ctx's error when ctx
// ends.
func Forever(ctx context.Context, run func(context.Context) error, failed func(err error, pause time.Duration)) error {
	pauses := Pauses()
	var last error // It stays here: the library acts on some kinds of errors.
	_, _ = backoff.Retry(ctx, func() (struct{}, error) {
		begin := time.Now()
		last = cmp.Or(run(ctx), errEnded)
		if time.Since(begin) > Most {
			pauses.Reset()
		}
		return struct{}{}, errEnded
	}, backoff.WithBackOff(pauses), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(_ error, pause time.Duration) {
		failed(last, pause)
	}))
	return ctx.Err()
}
