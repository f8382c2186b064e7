package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// How long things may take at most. They are generous: a run shares its machine
// with other tests, under the race detector. What has to be quick is measured
// where it is.
const (
	patience  = 30 * time.Second
	stopTime  = 15 * time.Second
	pollPause = 10 * time.Millisecond
)

// journal is everything a process has written to stdout and stderr.
type journal struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced at each write
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

// Write is io.Writer, for exec.Cmd.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.changed)
	j.changed = make(chan struct{})
	return j.text.Write(p)
}

func (j *journal) snapshot() (string, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String(), j.changed
}

func (j *journal) String() string {
	text, _ := j.snapshot()
	return text
}

// process is a running program.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *journal
	done chan struct{} // closed when it has ended
}

// launch starts a program. It is killed at the end of the test if it still runs.
func launch(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, log: newJournal(), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	bindLife(cmd.SysProcAttr)
	cmd.WaitDelay = stopTime
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // ProcessState has what matters
	}()
	t.Cleanup(func() { p.end(syscall.SIGKILL) })
	return p
}

// end sends a signal and waits for the process to be gone; false: it is not.
func (p *process) end(sig os.Signal) bool {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false
	}
	select {
	case <-p.done:
		return true
	case <-time.After(stopTime):
		return false
	}
}

// kill is kill -9.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if !p.end(syscall.SIGKILL) {
		t.Fatalf("%s survived SIGKILL for %v", p.name, stopTime)
	}
}

// stop asks the process to end and demands that it does so in order.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if !p.end(syscall.SIGTERM) {
		t.Fatalf("%s has not stopped %v after SIGTERM", p.name, stopTime)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("%s ended with exit code %d after SIGTERM, want 0", p.name, code)
	}
}

// exit waits for the process to end by itself and returns its exit code.
func (p *process) exit(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("%s still runs after %v", p.name, within)
		return 0
	}
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// await waits until the process has written a match of the pattern and returns
// its submatches.
func (p *process) await(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	for {
		text, changed := p.log.snapshot()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-changed:
		case <-p.done:
			if m := re.FindStringSubmatch(p.log.String()); m != nil {
				return m
			}
			t.Fatalf("%s ended and never wrote %q", p.name, pattern)
		case <-deadline:
			t.Fatalf("%s has not written %q within %v", p.name, pattern, patience)
		}
	}
}

// errorLines are the lines that begin with Error: or hint:, which is how the
// programs say why they end.
func errorLines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "Error: ") || strings.HasPrefix(line, "hint: ") {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}

// eventually tries until it works.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	eventuallyWithin(t, patience, what, try)
}

func eventuallyWithin(t *testing.T, within time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		select {
		case <-time.After(pollPause):
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// sleepUntil waits for a moment that only the clock brings: the end of a
// certificate or an entry.
func sleepUntil(t *testing.T, when time.Time) {
	t.Helper()
	select {
	case <-time.After(time.Until(when)):
	case <-t.Context().Done():
	}
}
