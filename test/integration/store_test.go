package integration

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// offline runs a verb of credence-server that asks no server.
func (w *world) offline(args ...string) output {
	w.t.Helper()
	return w.runCommand(w.command(w.bin.server, args...))
}

// backup writes a backup of the running server to path.
func (s *server) backup(path string) {
	s.t.Helper()
	if out := s.cli("store", "backup", "-out", path); out.code != 0 {
		s.t.Fatalf("store backup: exit code %d: %s", out.code, out.stderr)
	}
}

func (s *server) storeFile() string { return filepath.Join(s.dataDir(), "credence.db") }

// fill creates n entries for processes that are not there.
func (s *server) fill(n int) {
	s.t.Helper()
	parent := s.id("/spire/agent/join_token/nobody")
	for i := 0; i < n; {
		var entries []*types.Entry
		for ; i < n && len(entries) < 200; i++ {
			entries = append(entries, s.entry(fmt.Sprintf("/fill/%d", i), parent, fmt.Sprintf("unix:uid:%d", 100_000+i)))
		}
		if _, err := s.entries().BatchCreateEntry(bounded(s.t), &entryv1.BatchCreateEntryRequest{Entries: entries}); err != nil {
			s.t.Fatalf("creating entries: %v", err)
		}
	}
}

// A server whose store is put back to a backup, while agent and workload live
// on: what was created since is gone, what was is there, the agent holds exactly
// that, and nothing is signed by an authority that is not in the bundle.
func TestS30_ARestoredStoreHeals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "restored")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	web, later := w.id("/web"), w.id("/later")
	entry := s.create(w.entry("/web", a.id(), self()))
	stream := streamOf(t, a, web)
	backup := w.path("store.dump")
	s.backup(backup)

	// Life goes on: another entry, a changed one, another authority.
	s.create(w.entry("/later", a.id(), self()))
	entry.DnsNames = []string{"changed.restored.test"}
	s.change(entry)
	stream.has(web, later)
	next := s.prepareX509()
	stream.until("the next authority is known", func(u x509Update) bool { return u.knows(next) })
	s.activateX509(next)
	entry.DnsNames = []string{"again.restored.test"}
	s.change(entry)
	stream.until("it signs", func(u x509Update) bool {
		i := u.find(web)
		return i != nil && hex.EncodeToString(i.leaf.AuthorityKeyId) == next
	})

	s.stop()
	if err := os.Rename(s.storeFile(), w.path("lost.db")); err != nil {
		t.Fatal(err)
	}
	out := w.offline("store", "restore", "-config", s.config(), "-in", backup)
	if out.code != 0 || !strings.HasPrefix(out.stdout, "Restored and compared ") {
		t.Fatalf("restore: exit code %d: %s%s", out.code, out.stdout, out.stderr)
	}
	begin := time.Now()
	s.start()
	u := stream.until("the stream is back to what the backup has", func(u x509Update) bool {
		i := u.find(web)
		return i != nil && len(u.svids) == 1 && len(i.leaf.DNSNames) == 0
	})
	t.Logf("healed %v after the server was started", time.Since(begin).Round(time.Millisecond))
	published := s.published()
	for _, i := range u.svids {
		if signer := hex.EncodeToString(i.leaf.AuthorityKeyId); !has(published, signer) {
			t.Errorf("the SVID of %s is of %s, and published is %v", i.id, signer, published)
		}
		i.verify(t)
	}
	if active := s.activeX509(); active != next || len(published) != 2 {
		t.Errorf("the active authority is %s, published are %v, want %s, whose key this server has, beside the one of the backup", active, published, next)
	}
	if n := s.allEntries(); len(n) != 1 {
		t.Errorf("the restored store has %d entries, want 1", len(n))
	}
	s.create(w.entry("/new", a.id(), self()))
	stream.has(web, w.id("/new"))
	if text := a.proc.log.String(); strings.Contains(text, "level=ERROR") {
		t.Errorf("the agent reports an error:\n%s", tail(text))
	}
}

func has[V any](m map[string]V, key string) bool { _, ok := m[key]; return ok }

// A backup, a restore and a copy that are killed at one moment after the other
// leave nothing, or what is refused by name; and running them again does it.
func TestStoreVerbsSurviveKill9(t *testing.T) {
	t.Parallel()
	const entries, moments = 2000, 6
	w := newWorld(t, "storekill")
	s := w.startServer(serverOptions{})
	s.fill(entries)
	backup := w.path("store.dump")
	took := measure(func() { s.backup(backup) })

	// 1. Backup.
	for i := range moments {
		path := w.path(fmt.Sprintf("killed%d.dump", i))
		killAfter(w, took*time.Duration(i)/moments, "store", "backup", "-out", path, "-socketPath", s.socket())
		if _, err := os.Stat(path); err == nil {
			if out := w.offline("store", "verify", "-in", path); out.code != 0 {
				t.Errorf("the file of a killed backup is there, and %s", out.stderr)
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, left := range leftovers(t, path) {
			if out := w.offline("store", "verify", "-in", left); out.code == 0 {
				continue // it was whole, and had not got its name yet
			} else if !strings.Contains(out.stderr, "Error: "+left+": dump ") || !strings.Contains(out.stderr, "hint: ") {
				t.Errorf("what a killed backup has left is answered\n%s", out.stderr)
			}
		}
	}
	s.stop()

	// 2. Restore and copy, each into one store again and again.
	for verb, source := range map[string][]string{
		"restore": {"store", "restore", "-in", backup, "-config"},
		"copy":    {"store", "copy", "-from", s.config(), "-to"},
	} {
		whole := w.namedServer(verb + "-whole")
		took = measure(func() {
			if out := w.offline(append(source, whole.config())...); out.code != 0 {
				t.Fatalf("%s: exit code %d: %s", verb, out.code, out.stderr)
			}
		})
		target := w.namedServer(verb)
		marked, kills := 0, 0
		// Other tests make the machine slower and quicker meanwhile: what has ended
		// before its kill says how quick it is now, and the moments, which are spread
		// by the golden ratio, go on until one was met.
		for ; kills < moments || marked == 0 && kills < 10*moments; kills++ {
			_, at := math.Modf(float64(kills+1) * math.Phi)
			if ran, ended := killAfter(w, time.Duration(at*1.2*float64(took)), append(source, target.config())...); ended {
				took = ran
			}
			if target.leftMarked(entries) {
				if marked++; marked == 1 {
					wantOneLine(t, target.endsAtOnce(target.run()), "store is incomplete", "run it again")
				}
			}
		}
		t.Logf("%s takes %v; %d of %d kills left a marked store", verb, took.Round(time.Millisecond), marked, kills)
		if marked == 0 {
			t.Errorf("no kill met a %s at work", verb)
		}
		if out := w.offline(append(source, target.config())...); out.code != 0 && marked > 0 {
			t.Fatalf("%s again: exit code %d: %s", verb, out.code, out.stderr)
		}
		target.start()
		if n := len(target.allEntries()); n != entries {
			t.Errorf("%s: %d entries, want %d", verb, n, entries)
		}
		target.stop()
	}
}

// namedServer is a server with a folder of its own.
func (w *world) namedServer(name string) *server {
	w.t.Helper()
	s := &server{world: w, dir: w.path(name), port: freePort(w.t)}
	s.conn = dialSocket(w.t, s.socket())
	writeFile(w.t, s.config(), s.text(serverOptions{}))
	return s
}

// leftMarked says whether a killed restore or copy has left a store that is
// refused, in place of none. One that was quicker than its end is taken away.
func (s *server) leftMarked(entries int) bool {
	s.t.Helper()
	out := s.offline("store", "info", "-config", s.config(), "-output", "json")
	switch {
	case strings.Contains(out.stderr, "there is no store"):
		return false
	case out.code != 0:
		if !strings.Contains(out.stderr, "store is incomplete") || !strings.Contains(out.stderr, "hint: ") {
			s.t.Errorf("what was left is answered %s", out.stderr)
		}
		return true
	}
	switch n := entriesIn(s.t, out); n {
	case 0: // made, and not begun with
	case entries:
		if err := os.Remove(s.storeFile()); err != nil {
			s.t.Fatal(err)
		}
	default:
		s.t.Errorf("%d of %d entries are in a store that nothing warns of", n, entries)
	}
	return false
}

// measure is how long something takes.
func measure(do func()) time.Duration {
	begin := time.Now()
	do()
	return time.Since(begin)
}

// killAfter starts a verb of credence-server and kills it after a time, and
// returns how long it ran and whether it had ended by itself.
func killAfter(w *world, after time.Duration, args ...string) (ran time.Duration, ended bool) {
	w.t.Helper()
	begin := time.Now()
	p := w.launch("killed "+args[1], exec.Command(w.bin.server, args...))
	select {
	case <-p.done:
		ended = true
	case <-time.After(after):
	}
	ran = time.Since(begin)
	p.kill(w.t)
	return ran, ended
}

// leftovers are the files that a killed writer of path can have left.
func leftovers(t *testing.T, path string) []string {
	t.Helper()
	left, err := filepath.Glob(path + ".tmp*")
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// entriesIn reads the number of entries out of `store info -output json`.
func entriesIn(t *testing.T, out output) int {
	t.Helper()
	var info struct {
		Tables []struct {
			Name  string `json:"name"`
			Count int    `json:"count,string"`
		} `json:"tables"`
	}
	if err := json.Unmarshal([]byte(out.stdout), &info); err != nil {
		t.Fatalf("store info: %v: %s%s", err, out.stdout, out.stderr)
	}
	for _, table := range info.Tables {
		if table.Name == "entries" {
			return table.Count
		}
	}
	t.Fatalf("store info has no entries: %s", out.stdout)
	return 0
}
