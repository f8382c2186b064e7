package integration

import (
	"path/filepath"
	"testing"
)

// Every configuration that we ship is taken by the program it is for.
func TestEveryShippedConfigurationIsValid(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "conf")
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for role, program := range map[string]string{"server": w.bin.server, "agent": w.bin.agent} {
		var files []string
		for _, f := range filesOf(t, filepath.Join(root, "conf", role)) {
			if ext := filepath.Ext(f); ext == ".conf" || ext == ".json" || ext == ".hcl" {
				files = append(files, filepath.Join("conf", role, f))
			}
		}
		if len(files) == 0 {
			t.Errorf("conf/%s has no configuration", role)
		}
		for _, f := range files {
			cmd := w.command(program, "validate", "-static", "-expandEnv", "-config", f)
			cmd.Dir = root
			out := w.runCommand(cmd)
			want := "Credence " + role + " configuration file is valid.\n"
			if out.code != 0 || out.stdout != want {
				t.Errorf("%s: exit code %d, said %q and %q, want %q", f, out.code, out.stdout, out.stderr, want)
			}
		}
	}
}
