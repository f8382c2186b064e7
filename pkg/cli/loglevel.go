package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// LogLevels are what -level of `logger set` may be.
const LogLevels = "panic, fatal, error, warn, info, debug or trace"

// ParseLogLevel reads the value of -level, in any case.
func ParseLogLevel(name string) (types.LogLevel, error) {
	upper := strings.ToUpper(name)
	if upper == "WARNING" {
		upper = "WARN"
	}
	level, ok := types.LogLevel_value[upper]
	if !ok || level == int32(types.LogLevel_UNSPECIFIED) {
		return 0, Hint(fmt.Errorf("the value %q is not a valid setting", name), "use one of "+LogLevels)
	}
	return types.LogLevel(level), nil
}

// PrintLogger prints what `logger` verbs answer with.
func PrintLogger(w io.Writer, l *types.Logger) error {
	_, err := fmt.Fprintf(w, "Logger Level : %s\nLaunch Level : %s\n\n", logLevelName(l.GetCurrentLevel()), logLevelName(l.GetLaunchLevel()))
	return err
}

// logLevelName is how SPIRE prints a level.
func logLevelName(level types.LogLevel) string {
	if level == types.LogLevel_WARN {
		return "warning"
	}
	return strings.ToLower(level.String())
}
