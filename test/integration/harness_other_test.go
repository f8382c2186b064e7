//go:build !linux

package integration

import "syscall"

// bindLife has no counterpart here: a test that is killed leaves its children.
func bindLife(*syscall.SysProcAttr) {}
