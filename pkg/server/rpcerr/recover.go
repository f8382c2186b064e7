package rpcerr

import (
	"fmt"
	"runtime/debug"
)

// panicError is a handler that panicked.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// Recover, when it is deferred, turns a panic into the function's error: one
// request must not end the others. Every goroutine that works for a request
// needs it, as a panic passes the one that waits for it by.
func Recover(err *error) {
	if r := recover(); r != nil {
		*err = &panicError{value: r, stack: debug.Stack()}
	}
}
