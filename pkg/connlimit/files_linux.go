package connlimit

import (
	"math"

	"golang.org/x/sys/unix"
)

// OpenFiles is how many descriptors this process may have, which Go has raised
// to what the system lets it.
func OpenFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, math.MaxInt32))
}
