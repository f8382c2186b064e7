package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
)

// Levels that SPIRE's configuration and its Logger API know beyond slog's four.
// Credence logs nothing at them; as a threshold they mean "more" and "less".
const (
	LevelTrace = slog.LevelDebug - 4
	LevelFatal = slog.LevelError + 4
	LevelPanic = slog.LevelError + 8
)

// levelNames is in order of severity; the first name of a level is its own.
var levelNames = []struct {
	name  string
	level slog.Level
}{
	{"trace", LevelTrace},
	{"debug", slog.LevelDebug},
	{"info", slog.LevelInfo},
	{"warn", slog.LevelWarn},
	{"warning", slog.LevelWarn},
	{"error", slog.LevelError},
	{"fatal", LevelFatal},
	{"panic", LevelPanic},
}

// ParseLevel reads the name of a log level as SPIRE writes it, in any case;
// the empty string is INFO.
func ParseLevel(name string) (slog.Level, error) {
	if name == "" {
		return slog.LevelInfo, nil
	}
	for _, l := range levelNames {
		if strings.EqualFold(l.name, name) {
			return l.level, nil
		}
	}
	return 0, fmt.Errorf("log level %q is unknown: use DEBUG, INFO, WARN or ERROR", name)
}

// LogConfig says what is logged, how and where. The zero value logs INFO and
// above as text to standard output, like SPIRE.
type LogConfig struct {
	// Level is the file key log_level: DEBUG, INFO (default), WARN, ERROR.
	Level string
	// Format is the file key log_format: text (default) or json.
	Format string
	// File is the file key log_file: a path that is appended to, and opened
	// again by [Log.Reopen]. Empty: Output.
	File string
	// AddSource is the file key log_source_location: adds file and line.
	AddSource bool
	// Output is written to when File is empty; nil is standard output.
	Output io.Writer
}

// Log is a logger whose level and file can be changed while it is used. It is
// safe for concurrent use.
type Log struct {
	logger *slog.Logger
	level  slog.LevelVar
	launch slog.Level
	file   *logFile // nil when logging to Output
}

// NewLog opens the log file, if there is one, and returns the logger. The
// caller closes it. An unknown level or format is an error that names the key.
func NewLog(c LogConfig) (*Log, error) {
	level, err := ParseLevel(c.Level)
	if err != nil {
		return nil, fmt.Errorf("log_level: %w", err)
	}
	l := &Log{launch: level}
	l.level.Set(level)

	out := c.Output
	if out == nil {
		out = os.Stdout
	}
	newHandler, err := handlerFor(c.Format)
	if err != nil {
		return nil, err
	}
	if c.File != "" {
		l.file = &logFile{path: c.File}
		if err := l.file.reopen(); err != nil {
			return nil, fmt.Errorf("log_file: %w", err)
		}
		out = l.file
	}
	l.logger = slog.New(newHandler(out, &slog.HandlerOptions{Level: &l.level, AddSource: c.AddSource}))
	return l, nil
}

func handlerFor(format string) (func(io.Writer, *slog.HandlerOptions) slog.Handler, error) {
	switch strings.ToLower(format) {
	case "", "text":
		return func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewTextHandler(w, o) }, nil
	case "json":
		return func(w io.Writer, o *slog.HandlerOptions) slog.Handler { return slog.NewJSONHandler(w, o) }, nil
	}
	return nil, fmt.Errorf("log_format: format %q is unknown: use text or json", format)
}

// Logger is the logger to hand to the rooms.
func (l *Log) Logger() *slog.Logger { return l.logger }

// Level is the threshold in force.
func (l *Log) Level() slog.Level { return l.level.Level() }

// LaunchLevel is the threshold the configuration asked for.
func (l *Log) LaunchLevel() slog.Level { return l.launch }

// SetLevel changes the threshold for all loggers derived from this one.
func (l *Log) SetLevel(level slog.Level) { l.level.Set(level) }

// Reopen opens the log file by its path again, after it was moved away by a
// log rotation. On an error the old file stays in use.
func (l *Log) Reopen() error {
	if l.file == nil {
		return nil
	}
	return l.file.reopen()
}

// Run reopens the log file at each SIGUSR2 until ctx ends; it returns nil.
// Without a file the signal is taken and ignored: it never ends the process.
func (l *Log) Run(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			if err := l.Reopen(); err != nil {
				l.logger.Error("log file could not be reopened, the old one stays in use", Err, err)
				continue
			}
			l.logger.Info("log file reopened")
		}
	}
}

// Close closes the log file, if there is one. Later lines are lost.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.close()
}

// logFile is a writer whose file can be exchanged between two lines.
type logFile struct {
	path string

	mu sync.Mutex
	f  *os.File
}

func (w *logFile) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return 0, os.ErrClosed
	}
	return w.f.Write(p)
}

func (w *logFile) reopen() error {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640) //nolint:gosec // As SPIRE's: a log collector's group reads it.
	if err != nil {
		return err
	}
	w.mu.Lock()
	old := w.f
	w.f = f
	w.mu.Unlock()
	if old == nil {
		return nil
	}
	return old.Close()
}

func (w *logFile) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return f.Close()
}
