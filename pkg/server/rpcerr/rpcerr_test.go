package rpcerr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/svid"
)

// TestKinds goes through every kind of error: its code, whether the client reads
// its text, and whether the log has it.
func TestKinds(t *testing.T) {
	t.Parallel()
	wrap := func(err error) error { return fmt.Errorf("canary: %w", err) }
	for _, tc := range []struct {
		name  string
		err   error
		code  codes.Code
		text  string // what the client reads
		level string // of the line in the log; empty for none
	}{
		{"nothing", nil, codes.OK, "", ""},
		{"unknown", errors.New("canary"), codes.Internal, "internal error: the server's log has the cause", "ERROR"},
		{"cancelled", wrap(context.Canceled), codes.Canceled, "the call was cancelled", "DEBUG"},
		{"deadline", wrap(context.DeadlineExceeded), codes.DeadlineExceeded, "the call took longer than its deadline", "DEBUG"},
		{"store away", wrap(store.ErrUnavailable), codes.Unavailable, "the store is not available now: try again", "WARN"},
		{"store closed", wrap(store.ErrClosed), codes.Unavailable, "the server is stopping: try again", "WARN"},
		{"too large", wrap(store.ErrTooLarge), codes.ResourceExhausted, "the request is too large for one transaction: split it", "WARN"},
		{"lock lost", wrap(store.ErrLockLost), codes.Unavailable, "another server took this work over: try again", "WARN"},
		{"no authority", wrap(ca.ErrNotReady), codes.Unavailable, "the authority cannot sign now: try again", "WARN"},
		{"authority expired", wrap(fmt.Errorf("%w: %w", ca.ErrNotReady, svid.ErrExpired)), codes.Unavailable, "the authority cannot sign now: try again", "WARN"},
		{"profile", fmt.Errorf("SPIFFE ID: %w", svid.ErrRefused), codes.InvalidArgument, "SPIFFE ID: refused by profile", ""},
		{"malformed", fmt.Errorf("CSR: %w", svid.ErrInvalid), codes.InvalidArgument, "CSR: invalid", ""},
		{"denied", &policy.DeniedError{Method: "/x", Need: policy.Local}, codes.PermissionDenied, "/x may be called by local, caller is anonymous", ""},
		{"rule", &registry.InvalidError{Field: "hint", Rule: "is too long"}, codes.InvalidArgument, "hint: is too long", ""},
		{"not found", fmt.Errorf("entry: %w", registry.ErrNotFound), codes.NotFound, "entry: not found", ""},
		{"exists", fmt.Errorf("entry: %w", registry.ErrExists), codes.AlreadyExists, "entry: already exists", ""},
		{"banned", registry.ErrBanned, codes.PermissionDenied, "agent is banned", ""},
		{"token", wrap(registry.ErrTokenUsed), codes.InvalidArgument, "join token does not exist or has already been used", "INFO"},
		{"own", wrap(New(codes.NotFound, "no %s", "bundle")), codes.NotFound, "no bundle", ""},
		{"hidden", Hide(errors.New("canary"), codes.Internal, "failed to attest"), codes.Internal, "failed to attest", "ERROR"},
		{"status", wrap(status.Error(codes.Aborted, "from below")), codes.Aborted, "from below", ""},
		{"prefixed", Prefix(&registry.InvalidError{Field: "hint", Rule: "is too long"}, "failed to convert entry"), codes.InvalidArgument, "failed to convert entry: hint: is too long", ""},
		{"prefixed internal", Prefix(errors.New("canary"), "failed to list"), codes.Internal, "failed to list: internal error: the server's log has the cause", "ERROR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var buf bytes.Buffer
			log := slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug}))
			got := status.Convert(Call(t.Context(), log, tc.err))
			if got.Code() != tc.code || got.Message() != tc.text {
				t.Errorf("the client reads %v %q, want %v %q", got.Code(), got.Message(), tc.code, tc.text)
			}
			if tc.level == "" && buf.Len() > 0 {
				t.Errorf("logged what the client knows: %s", &buf)
			}
			if tc.level != "" && (!strings.Contains(buf.String(), "level="+tc.level) || !strings.Contains(buf.String(), "canary")) {
				t.Errorf("log, want a line of %s with the cause: %s", tc.level, &buf)
			}
			item := Item(t.Context(), slog.New(slog.NewTextHandler(io.Discard, nil)), tc.err)
			want := &types.Status{Code: int32(tc.code), Message: tc.text}
			if tc.err == nil {
				want.Message = "OK"
			}
			if item.Code != want.Code || item.Message != want.Message {
				t.Errorf("item %v, want %v", item, want)
			}
		})
	}
	if err := Prefix(nil, "doing"); err != nil {
		t.Errorf("Prefix of nothing is %v", err)
	}
}

func TestDeniedCarriesTheReason(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"bare":     Denied(types.PermissionDeniedDetails_AGENT_BANNED, "agent is banned"),
		"wrapped":  fmt.Errorf("canary: %w", Denied(types.PermissionDeniedDetails_AGENT_BANNED, "agent is banned")),
		"prefixed": Prefix(Denied(types.PermissionDeniedDetails_AGENT_BANNED, "agent is banned"), "doing"),
	} {
		s := Status(err)
		var reasons []types.PermissionDeniedDetails_Reason
		for _, d := range s.Details() {
			if p, ok := d.(*types.PermissionDeniedDetails); ok {
				reasons = append(reasons, p.Reason)
			}
		}
		if diff := cmp.Diff([]types.PermissionDeniedDetails_Reason{types.PermissionDeniedDetails_AGENT_BANNED}, reasons); diff != "" || s.Code() != codes.PermissionDenied {
			t.Errorf("%s: %v, details (-want +got):\n%s", name, s, diff)
		}
	}
}

func TestErrorTellsTheLogMore(t *testing.T) {
	t.Parallel()
	cause := errors.New("disk is full")
	err := Hide(cause, codes.Internal, "failed to list")
	if err.Error() != "failed to list: disk is full" || !errors.Is(err, cause) {
		t.Errorf("got %q, cause kept %v", err, errors.Is(err, cause))
	}
}
