package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheChartsFile: what the Helm chart writes is understood, and nothing of it
// is refused.
func TestTheChartsFile(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{
		"ours":   "testdata/chart.json",
		"shared": "../../../shared/data/chart-server.json",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(path)
			if err != nil && name == "shared" {
				t.Skipf("the data shared between projects is not here: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			c, err := load(t, strings.ReplaceAll(string(text), "@DIR@", dir))
			if err != nil {
				t.Fatal(err)
			}
			c.Server.SocketPath = filepath.Join(dir, "api.sock") // the default is root's
			if err := c.Preflight(); err != nil {
				t.Error(err)
			}
			made, err := c.choose()
			if err != nil {
				t.Fatal(err)
			}
			if made.verifiers["k8s_psat"] == nil || len(made.targets) != 1 {
				t.Errorf("%d node attestors and %d publishers are chosen, want k8s_psat and k8s_configmap", len(made.verifiers), len(made.targets))
			}
		})
	}
}
