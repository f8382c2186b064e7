package route

import (
	"errors"
	"slices"
	"strings"
)

// ErrUnreachable is in an [Error] for each server that could not be connected
// to for no reason that is known.
var ErrUnreachable = errors.New("no connection; is the server running, and is its address right?")

// Error is why no server could be connected to: errors.Is finds what any of the
// attempts ended with.
type Error struct{ attempts []error }

// Error has the error of each attempt.
func (e *Error) Error() string {
	texts := make([]string, 0, len(e.attempts))
	for _, err := range e.attempts {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

// Unwrap is for errors.Is and errors.As.
func (e *Error) Unwrap() []error { return e.attempts }

// All says whether every attempt ended with the target.
func (e *Error) All(target error) bool {
	return !slices.ContainsFunc(e.attempts, func(err error) bool { return !errors.Is(err, target) })
}

// failed leaves nil out.
func failed(errs ...error) *Error {
	return &Error{slices.DeleteFunc(errs, func(err error) bool { return err == nil })}
}
