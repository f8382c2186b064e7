package route

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestRedial: an attempt that nothing answers makes room for another one; one
// that is refused is the answer.
func TestRedial(t *testing.T) {
	t.Parallel()
	silence := func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	}
	for name, test := range map[string]struct {
		silent int // attempts that are not answered
		err    error
		took   time.Duration
	}{
		"at once":        {0, nil, 0},
		"the third":      {2, nil, 2 * answerTime},
		"refused":        {1, syscall.ECONNREFUSED, answerTime},
		"nobody answers": {100, os.ErrDeadlineExceeded, ConnectTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), ConnectTimeout)
				defer cancel()
				begin, attempts := time.Now(), 0
				conn, err := redial(ctx, func(ctx context.Context) (net.Conn, error) {
					if attempts++; attempts <= test.silent {
						return silence(ctx)
					}
					if test.err != nil {
						return nil, &net.OpError{Op: "dial", Err: test.err}
					}
					ours, theirs := net.Pipe()
					return ours, theirs.Close()
				})
				if !errors.Is(err, test.err) || (conn == nil) != (err != nil) {
					t.Errorf("connection %v, error %v, want error %v", conn, err, test.err)
				}
				if took := time.Since(begin); took != test.took {
					t.Errorf("it took %v, want %v", took, test.took)
				}
				if conn != nil {
					_ = conn.Close() // a pipe
				}
			})
		})
	}
}
