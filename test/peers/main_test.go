package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// workDir is the folder of this run: short, because the path of a socket is at
// most 107 bytes long.
var workDir string

// uid is the user who runs the tests, and so of each workload in them.
var uid = os.Getuid()

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (exit int) {
	var err error
	if workDir, err = os.MkdirTemp("", "cpe-"); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		return 1
	}
	defer func() {
		if err := os.RemoveAll(workDir); err != nil {
			fmt.Fprintln(os.Stderr, "peers:", err)
			exit = 1
		}
	}()
	return m.Run()
}

// programs is a directory with spire-server and spire-agent.
type programs struct{ name, dir string }

func (p programs) server() string { return filepath.Join(p.dir, "spire-server") }
func (p programs) agent() string  { return filepath.Join(p.dir, "spire-agent") }

// spire is the SPIRE that SPIRE_BIN names; without one the test is skipped.
func spire(t *testing.T) programs {
	t.Helper()
	dir := os.Getenv("SPIRE_BIN")
	if dir == "" {
		t.Skip("SPIRE_BIN is not set: build spire-server and spire-agent of SPIRE 1.15 and name their directory to play against them")
	}
	p := programs{name: "spire", dir: dir}
	for _, file := range []string{p.server(), p.agent()} {
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("SPIRE_BIN: %v", err)
		}
	}
	return p
}

// program is a file that the environment names; without one the test is skipped.
func program(t *testing.T, variable, what string) string {
	t.Helper()
	file := os.Getenv(variable)
	if file == "" {
		t.Skipf("%s is not set: build %s and name its file to play against it", variable, what)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return file
}

// built builds our programs, called as SPIRE's are, once a run.
var built = sync.OnceValues(func() (programs, error) {
	p := programs{name: "credence", dir: filepath.Join(workDir, "bin")}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return p, err
	}
	for role, file := range map[string]string{"server": p.server(), "agent": p.agent()} {
		cmd := exec.Command("go", "build", "-o", file, "github.com/credence-id/credence/cmd/"+role)
		if out, err := cmd.CombinedOutput(); err != nil {
			return p, fmt.Errorf("building %s: %w\n%s", file, err, out)
		}
	}
	return p, nil
})

func ours(t *testing.T) programs {
	t.Helper()
	p, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return p
}
