package server

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTheChartsFile: what the Helm chart writes is understood, and refused only
// by the names of plugins that come later, at their lines.
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
			err = c.Preflight()
			if err == nil {
				t.Fatal("nothing is refused")
			}
			refused := regexp.MustCompile(`server\.conf:\d+: (plugins\.\S+): not supported: `)
			var got []string
			for _, line := range strings.Split(err.Error(), "\n") {
				if m := refused.FindStringSubmatch(line); m != nil {
					line = m[1]
				}
				got = append(got, line)
			}
			want := []string{"plugins.BundlePublisher.k8s_configmap", "plugins.NodeAttestor.k8s_psat"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}
