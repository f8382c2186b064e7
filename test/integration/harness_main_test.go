package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// update rewrites the golden parts of testdata/script.
var update = flag.Bool("update", false, "write what the programs print into the scripts")

// minParallel is how many stories run side by side at least: they wait more
// than they compute.
const minParallel = 8

// workDir is the folder of this run. Other users must be able to pass through
// it, which a folder of t.TempDir does not allow, and its name is short, because
// the path of a socket is at most 107 bytes long.
var workDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (exit int) {
	etcdtest.Member()
	if role := os.Getenv(roleVariable); role != "" {
		return runRole(role)
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set(strconv.Itoa(max(minParallel, runtime.GOMAXPROCS(0)))); err != nil {
			return fail(err)
		}
	}
	var err error
	if workDir, err = os.MkdirTemp("", "cit-"); err != nil {
		return fail(err)
	}
	defer func() {
		if err := os.RemoveAll(workDir); err != nil {
			exit = fail(err)
		}
	}()
	if err := os.Chmod(workDir, 0o711); err != nil {
		return fail(err)
	}
	return m.Run()
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "integration:", err)
	return 1
}

// programs are the files under test.
type programs struct {
	dir           string // has both, and spire-server and spire-agent
	server, agent string
}

// built builds both programs, once a run, and only if a test needs them.
var built = sync.OnceValues(func() (programs, error) {
	dir := filepath.Join(workDir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return programs{}, err
	}
	for _, role := range []string{"server", "agent"} {
		args := []string{"build", "-o", filepath.Join(dir, "credence-"+role)}
		if raceEnabled {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "github.com/credence-id/credence/cmd/"+role)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return programs{}, fmt.Errorf("building credence-%s: %w\n%s", role, err, out)
		}
		if err := os.Symlink("credence-"+role, filepath.Join(dir, "spire-"+role)); err != nil {
			return programs{}, err
		}
	}
	return programs{dir: dir, server: filepath.Join(dir, "credence-server"), agent: filepath.Join(dir, "credence-agent")}, nil
})

func binaries(t *testing.T) programs {
	t.Helper()
	p, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// copyFile copies an executable, to where other users may run it. Another
// process does it: had this one the copy open for writing while it starts a third,
// the copy could not be run ("text file busy").
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copying %s: %v\n%s", from, err, out)
	}
	if err := os.Chmod(to, 0o755); err != nil {
		t.Fatal(err)
	}
}
