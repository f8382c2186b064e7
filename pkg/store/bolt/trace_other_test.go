//go:build !linux || !amd64

package bolt_test

import (
	"fmt"
	"runtime"
	"syscall"
)

type recorder struct {
	dir  string
	ops  []diskOp
	fail func(op diskOp) syscall.Errno
}

func (*recorder) run(string) error {
	return fmt.Errorf("%w: the recorder is written for linux/amd64, not %s/%s", errNoTrace, runtime.GOOS, runtime.GOARCH)
}
