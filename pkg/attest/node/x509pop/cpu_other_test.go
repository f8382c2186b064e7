//go:build !linux

package x509pop

import (
	"testing"
	"time"
)

var begin = time.Now()

// cpuTime is the time that has passed, where a thread's own is not to be had.
func cpuTime(*testing.T) time.Duration { return time.Since(begin) }
