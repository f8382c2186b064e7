package attestor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestDeadlineIsLikeTheStandardOne, whether or not somebody waits on Done.
func TestDeadlineIsLikeTheStandardOne(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		parent time.Duration // its deadline; zero: none
		do     func(cancelParent, stop func())
		want   error
	}{
		"nothing":       {do: func(_, _ func()) {}},
		"time":          {do: func(_, _ func()) { time.Sleep(time.Second) }, want: context.DeadlineExceeded},
		"parent's time": {parent: time.Millisecond, do: func(_, _ func()) { time.Sleep(time.Millisecond) }, want: context.DeadlineExceeded},
		"parent's end":  {do: func(cancel, _ func()) { cancel() }, want: context.Canceled},
		"stop":          {do: func(_, stop func()) { stop() }, want: context.Canceled},
	} {
		for _, waits := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					parent, cancel := context.WithCancel(t.Context())
					defer cancel()
					if tc.parent > 0 {
						var end context.CancelFunc
						parent, end = context.WithTimeout(parent, tc.parent)
						defer end()
					}
					at := time.Now().Add(time.Second)
					d := withDeadline(parent, at)
					defer d.stop()
					want := at
					if tc.parent > 0 {
						want = time.Now().Add(tc.parent)
					}
					if got, ok := d.Deadline(); !ok || !got.Equal(want) {
						t.Errorf("Deadline is %v, want %v", got, want)
					}
					if waits {
						d.Done()
					}
					tc.do(cancel, d.stop)
					synctest.Wait()
					if got := d.Err(); !errors.Is(got, tc.want) {
						t.Errorf("Err is %v, want %v", got, tc.want)
					}
					select {
					case <-d.Done():
						if tc.want == nil {
							t.Error("done")
						}
					default:
						if tc.want != nil {
							t.Error("not done")
						}
					}
				})
			})
		}
	}
}
