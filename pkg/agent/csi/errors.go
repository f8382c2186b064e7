package csi

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// refusal is an error that CSI has a code for.
type refusal struct {
	code codes.Code
	err  error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// invalid is about the request: it will be refused again as it is.
func invalid(format string, args ...any) error {
	return &refusal{codes.InvalidArgument, fmt.Errorf(format, args...)}
}

// unready is about this node: the same request can be granted when somebody has
// put it right.
func unready(format string, args ...any) error {
	return &refusal{codes.FailedPrecondition, fmt.Errorf(format, args...)}
}

// asStatus is what crosses the wire, whole: kubelet shows it as an event of the
// pod, where operators look first. Nothing in this package's errors is secret.
func asStatus(err error) error {
	var r *refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r):
		return status.Error(r.code, err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}
