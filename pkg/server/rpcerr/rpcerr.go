package rpcerr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
)

// kinds maps sentinels to codes, first match wins. An empty message sends the
// error's own text.
var kinds = []struct {
	is      error
	code    codes.Code
	message string
}{
	// An engine says why it is not available, which may be a deadline of its own.
	{store.ErrUnavailable, codes.Unavailable, "the store is not available now: try again"},
	{context.Canceled, codes.Canceled, "the call was cancelled"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "the call took longer than its deadline"},
	{policy.ErrDenied, codes.PermissionDenied, ""},
	{ca.ErrNotReady, codes.Unavailable, "the authority cannot sign now: try again"},
	{svid.ErrInvalid, codes.InvalidArgument, ""},
	{svid.ErrRefused, codes.InvalidArgument, ""},
	{registry.ErrInvalid, codes.InvalidArgument, ""},
	{registry.ErrNotFound, codes.NotFound, ""},
	{registry.ErrExists, codes.AlreadyExists, ""},
	{registry.ErrConflict, codes.Aborted, ""},
	{registry.ErrBanned, codes.PermissionDenied, ""},
	{registry.ErrTokenRefused, codes.InvalidArgument, "join token does not exist or has already been used"},
	{store.ErrClosed, codes.Unavailable, "the server is stopping: try again"},
	{store.ErrLockLost, codes.Unavailable, "another server took this work over: try again"},
	{store.ErrTooLarge, codes.ResourceExhausted, "the request is too large for one transaction: split it"},
}

// Error is an error with the status it has on the wire. Err, if any, is the
// cause, which only the log sees.
type Error struct {
	Code    codes.Code
	Message string
	Err     error
	details []*types.PermissionDeniedDetails
}

// New returns an error whose code and text reach the client as they are.
func New(code codes.Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Denied is PermissionDenied with SPIRE's details, on which agents shut down or
// attest again.
func Denied(reason types.PermissionDeniedDetails_Reason, format string, args ...any) *Error {
	e := New(codes.PermissionDenied, format, args...)
	e.details = []*types.PermissionDeniedDetails{{Reason: reason}}
	return e
}

// Hide returns an error with the code and text for the client, and err for the
// log.
func Hide(err error, code codes.Code, message string) *Error {
	return &Error{Code: code, Message: message, Err: err}
}

// Error is the text for the log: the message, and the cause if there is one.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// GRPCStatus is what crosses the wire.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(e.Code, e.Message)
	for _, d := range e.details {
		// It fails for a code of OK only.
		if with, err := s.WithDetails(d); err == nil {
			s = with
		}
	}
	return s
}

// Status maps err: nil is OK; an [*Error] or a gRPC status anywhere in its
// chain is that status; a known kind has its code; all else is Internal.
func Status(err error) *status.Status {
	s, _ := classify(err)
	return s
}

// Call is Status as the error of a whole call, for the interceptor. What the
// status hides is logged.
func Call(ctx context.Context, log *slog.Logger, err error) error {
	return report(ctx, log, err).Err()
}

// Item is Status as the status of one item of a batch. What the status hides is
// logged.
func Item(ctx context.Context, log *slog.Logger, err error) *types.Status {
	s := report(ctx, log, err)
	if s.Code() == codes.OK {
		return &types.Status{Message: "OK"}
	}
	return &types.Status{Code: int32(s.Code()), Message: s.Message()}
}

// Prefix returns err so that its text for the client begins with what was
// being done, as SPIRE's items do ("failed to create entry: …"). Code and
// details stay. A nil err is nil.
func Prefix(err error, doing string) error {
	if err == nil {
		return nil
	}
	s, hidden := classify(err)
	e := &Error{Code: s.Code(), Message: doing + ": " + s.Message()}
	if hidden {
		e.Err = err
	}
	for _, d := range s.Details() {
		if p, ok := d.(*types.PermissionDeniedDetails); ok {
			e.details = append(e.details, p)
		}
	}
	return e
}

// report maps err and logs it when the status does not say all of it.
func report(ctx context.Context, log *slog.Logger, err error) *status.Status {
	s, hidden := classify(err)
	if !hidden {
		return s
	}
	level := slog.LevelError
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded:
		level = slog.LevelDebug
	case codes.Unavailable, codes.ResourceExhausted:
		level = slog.LevelWarn
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition:
		level = slog.LevelInfo // The client's mistake.
	}
	log.Log(ctx, level, "request failed", telemetry.Code, s.Code().String(), telemetry.Err, err)
	return s
}

// classify returns the status and whether it says less than err does.
func classify(err error) (s *status.Status, hidden bool) {
	if err == nil {
		return status.New(codes.OK, ""), false
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.GRPCStatus(), e.Err != nil
	}
	if e, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		return e.GRPCStatus(), false
	}
	for _, k := range kinds {
		if !errors.Is(err, k.is) {
			continue
		}
		if k.message == "" {
			return status.New(k.code, err.Error()), false
		}
		return status.New(k.code, k.message), true
	}
	return status.New(codes.Internal, "internal error: the server's log has the cause"), true
}
