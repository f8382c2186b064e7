package loggerapi_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/server/loggerapi"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

func newLog(t *testing.T, level string) (*telemetry.Log, *strings.Builder) {
	t.Helper()
	var out strings.Builder
	log, err := telemetry.NewLog(telemetry.LogConfig{Level: level, Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	return log, &out
}

// TestLevels sets each level of SPIRE's API, and resets it.
func TestLevels(t *testing.T) {
	t.Parallel()
	log, _ := newLog(t, "warn")
	s := loggerapi.New(log)
	look := func(want types.LogLevel, got *types.Logger, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&types.Logger{CurrentLevel: want, LaunchLevel: types.LogLevel_WARN}, got, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	for number := range types.LogLevel_name {
		level := types.LogLevel(number)
		if level == types.LogLevel_UNSPECIFIED {
			continue
		}
		got, err := s.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: level})
		look(level, got, err)
		got, err = s.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
		look(level, got, err)
	}
	got, err := s.ResetLogLevel(t.Context(), &loggerv1.ResetLogLevelRequest{})
	look(types.LogLevel_WARN, got, err)
	if log.Level() != slog.LevelWarn {
		t.Errorf("the level is %v", log.Level())
	}
}

// TestStatuses has SPIRE's codes and texts.
func TestStatuses(t *testing.T) {
	t.Parallel()
	log, _ := newLog(t, "info")
	set := func(s *loggerapi.Service, level types.LogLevel) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := s.SetLogLevel(ctx, &loggerv1.SetLogLevelRequest{NewLevel: level})
			return err
		}
	}
	ours, none := loggerapi.New(log), loggerapi.New(nil)
	const notOurs = "the log of this server belongs to the program that started it: change its level there"
	for name, c := range map[string]struct {
		call func(context.Context) error
		code codes.Code
		text string
	}{
		"unspecified": {set(ours, types.LogLevel_UNSPECIFIED), codes.InvalidArgument, "newLevel value cannot be LogLevel_UNSPECIFIED"},
		"unknown":     {set(ours, 99), codes.InvalidArgument, "unsupported log level"},
		"set":         {set(none, types.LogLevel_DEBUG), codes.FailedPrecondition, notOurs},
		"get": {func(ctx context.Context) error {
			_, err := none.GetLogger(ctx, &loggerv1.GetLoggerRequest{})
			return err
		}, codes.FailedPrecondition, notOurs},
		"reset": {func(ctx context.Context) error {
			_, err := none.ResetLogLevel(ctx, &loggerv1.ResetLogLevelRequest{})
			return err
		}, codes.FailedPrecondition, notOurs},
	} {
		if s := rpcerr.Status(c.call(t.Context())); s.Code() != c.code || s.Message() != c.text {
			t.Errorf("%s: %v", name, s)
		}
	}
	if log.Level() != slog.LevelInfo {
		t.Errorf("a refused call changed the level to %v", log.Level())
	}
}

// TestChangesAreLogged: also the one that silences the log, and the one that
// ends the silence.
func TestChangesAreLogged(t *testing.T) {
	t.Parallel()
	log, out := newLog(t, "info")
	s := loggerapi.New(log)
	for _, level := range []types.LogLevel{types.LogLevel_PANIC, types.LogLevel_ERROR, types.LogLevel_DEBUG} {
		if _, err := s.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: level}); err != nil {
			t.Fatal(err)
		}
	}
	// From info to panic and from error to debug; at neither of panic and error
	// would a line of level info be shown.
	if n := strings.Count(out.String(), "log level is changed"); n != 2 {
		t.Errorf("%d changes are logged, want 2:\n%s", n, out)
	}
}
