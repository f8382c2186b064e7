package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// A store that a newer program wrote is not touched by an older one.
func TestAStoreOfANewerFormatIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "newer")
	s := w.startServer(serverOptions{})
	s.create(w.entry("/web", w.id("/spire/agent/join_token/x"), self()))
	s.stop()
	path := filepath.Join(s.dataDir(), "credence.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte("meta"))
		if meta == nil || meta.Get([]byte("format")) == nil {
			return fmt.Errorf("the store has no format where this test looks for it")
		}
		return meta.Put([]byte("format"), []byte("999"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before := content(t, s.dataDir())

	out := s.endsAtOnce(s.run())
	wantOneLine(t, out, "format 999", "run the newer program")
	if after := content(t, s.dataDir()); !equalContent(before, after) {
		t.Errorf("data_dir had %v, and has %v after the refusal", sizes(before), sizes(after))
	}
}

// A second server on the same data_dir is refused, and the first does not
// notice.
func TestASecondServerOnTheSameDataIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "second")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	s.create(w.entry("/web", a.id(), self()))
	stream := streamOf(t, a, w.id("/web"))

	socket := w.path("other.sock")
	second := w.launch("second server", exec.Command(s.bin.server, "run", "-config", s.config(),
		"-serverPort", fmt.Sprint(freePort(t)), "-socketPath", socket))
	wantOneLine(t, s.endsAtOnce(second), "credence.db", "stop the other process or use another data_dir")
	if _, err := os.Lstat(socket); err == nil {
		t.Errorf("the second server has left %s behind", socket)
	}

	s.create(w.entry("/api", a.id(), self()))
	stream.has(w.id("/web"), w.id("/api"))
	s.stop()
	s.start()
	if n := len(s.allEntries()); n != 2 {
		t.Errorf("%d entries are there after a restart, want 2", n)
	}
}

// endsAtOnce waits for the end of a process that cannot start.
func (w *world) endsAtOnce(p *process) output {
	w.t.Helper()
	code := p.exit(w.t, patience)
	return output{stderr: p.log.String(), code: code}
}

// wantOneLine demands a failure that is one line, with the words, and a hint at
// most.
func wantOneLine(t *testing.T, o output, words ...string) {
	t.Helper()
	if o.code != 1 {
		t.Errorf("exit code %d, want 1", o.code)
	}
	var problems []string
	for _, line := range errorLines(o.stderr) {
		if strings.HasPrefix(line, "Error: ") {
			problems = append(problems, line)
		}
	}
	if len(problems) != 1 {
		t.Fatalf("it said %q, want one line that begins \"Error: \"; all of it:\n%s", problems, o.stderr)
	}
	said := strings.Join(errorLines(o.stderr), "\n")
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("it said\n%s\nwant %q in it", said, word)
		}
	}
	// What follows the line is a second line of the same error.
	_, rest, _ := strings.Cut(o.stderr, problems[0]+"\n")
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "hint: ") {
			t.Errorf("after the line of the problem it said %q", line)
		}
	}
}

// content is every file below a folder.
func content(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	for _, f := range filesOf(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		out[f] = data
	}
	return out
}

func equalContent(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name, data := range a {
		if other, ok := b[name]; !ok || !bytes.Equal(data, other) {
			return false
		}
	}
	return true
}

func sizes(files map[string][]byte) map[string]int {
	out := make(map[string]int)
	for name, data := range files {
		out[name] = len(data)
	}
	return out
}
