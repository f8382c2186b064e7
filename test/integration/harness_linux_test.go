package integration

import "syscall"

// bindLife lets the kernel end a child when the test ends, however it ends.
func bindLife(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
