package peers

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// TestOverTheDataOfSPIRE puts our server in the place of SPIRE's, configuration
// and data_dir: it does not start, says what to do instead, and changes nothing;
// SPIRE starts again where it was. It is the same with the embedded store in that
// data_dir, and when SPIRE was killed.
func TestOverTheDataOfSPIRE(t *testing.T) {
	t.Parallel()
	theirs, mine := spire(t), ours(t)
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := startSide(t, theirs)
			s.register("/web", "/node", &types.Selector{Type: "unix", Value: "uid:1"})
			entries := s.entryIDs()
			if !s.proc.end(sig) {
				t.Fatal("SPIRE did not end")
			}
			text, err := os.ReadFile(s.path("server.conf"))
			if err != nil {
				t.Fatal(err)
			}
			sql := string(text)
			at := strings.Index(sql, "DataStore")
			bolt := sql[:at] + `DataStore "bolt" {}` + sql[at+strings.Index(sql[at:], "\n"):]
			for name, text := range map[string]string{"sql": sql, "bolt": bolt} {
				s.write(name+".conf", text)
			}
			before := filesBelow(t, s.dir)
			for _, name := range []string{"sql", "bolt"} {
				out := runCommand(t, mine.server(), "run", "-config", s.path(name+".conf"))
				all := out.stdout + out.stderr
				if out.code != 1 || !strings.Contains(all, "credence-server import") || !strings.Contains(all, "datastore.sqlite3") {
					t.Errorf("%s: it ended with %d: %s", name, out.code, all)
				}
			}
			if diff := cmp.Diff(before, filesBelow(t, s.dir)); diff != "" {
				t.Errorf("files changed (-before +after):\n%s", diff)
			}
			s.start()
			if diff := cmp.Diff(entries, s.entryIDs()); diff != "" {
				t.Errorf("SPIRE's entries (-before +after):\n%s", diff)
			}
		})
	}
}

// filesBelow are the files below a folder, with mode and digest.
func filesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		out[path] = info.Mode().String()
		if !info.Mode().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		out[path] += fmt.Sprintf(" %x", sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
