package x509pop

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is what the thread has had of the processor: other work of the machine
// does not count.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
