package telemetry

import (
	"io"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/testing/protocmp"
)

func TestAPILevelsRoundTrip(t *testing.T) {
	t.Parallel()
	for number, name := range types.LogLevel_name {
		api := types.LogLevel(number)
		level, ok := FromAPILevel(api)
		if ok != (api != types.LogLevel_UNSPECIFIED) {
			t.Errorf("%s: known %v", name, ok)
		}
		if ok && apiLevel(level) != api {
			t.Errorf("%s became %v", name, apiLevel(level))
		}
	}
	if _, ok := FromAPILevel(99); ok {
		t.Error("level 99 is known")
	}
}

func TestAPILogger(t *testing.T) {
	t.Parallel()
	log, err := NewLog(LogConfig{Level: "warn", Output: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	for level, want := range map[slog.Level]types.LogLevel{
		LevelTrace - 1:     types.LogLevel_TRACE,
		slog.LevelInfo + 1: types.LogLevel_INFO,
		LevelPanic + 4:     types.LogLevel_PANIC,
	} {
		log.SetLevel(level)
		got := log.APILogger()
		if diff := cmp.Diff(&types.Logger{CurrentLevel: want, LaunchLevel: types.LogLevel_WARN}, got, protocmp.Transform()); diff != "" {
			t.Errorf("level %v: %s", level, diff)
		}
	}
}
