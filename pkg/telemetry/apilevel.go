package telemetry

import (
	"log/slog"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// apiLevels are the levels of SPIRE's Logger API, least severe first.
var apiLevels = []struct {
	api   types.LogLevel
	level slog.Level
}{
	{types.LogLevel_TRACE, LevelTrace},
	{types.LogLevel_DEBUG, slog.LevelDebug},
	{types.LogLevel_INFO, slog.LevelInfo},
	{types.LogLevel_WARN, slog.LevelWarn},
	{types.LogLevel_ERROR, slog.LevelError},
	{types.LogLevel_FATAL, LevelFatal},
	{types.LogLevel_PANIC, LevelPanic},
}

// FromAPILevel is the threshold that a level of SPIRE's Logger API means; false
// for a level that is not one.
func FromAPILevel(api types.LogLevel) (slog.Level, bool) {
	for _, l := range apiLevels {
		if l.api == api {
			return l.level, true
		}
	}
	return 0, false
}

// APILogger is the state of the log as SPIRE's Logger API shows it. A threshold
// between two of its levels is shown as the less severe one.
func (l *Log) APILogger() *types.Logger {
	return &types.Logger{CurrentLevel: apiLevel(l.Level()), LaunchLevel: apiLevel(l.LaunchLevel())}
}

func apiLevel(level slog.Level) types.LogLevel {
	shown := apiLevels[0].api
	for _, l := range apiLevels {
		if l.level <= level {
			shown = l.api
		}
	}
	return shown
}
