package agent

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

// loadText loads a configuration that is written in the test.
func loadText(t *testing.T, text string) *Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path, false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTheChartsFile: what the Helm chart writes is understood, and refused only
// by the names of plugins that come later, at their lines, and because there is
// no token outside a pod.
func TestTheChartsFile(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{
		"ours":   "testdata/chart.json",
		"shared": "../../../shared/data/chart-agent.json",
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
			bundle := spiffebundle.New(testTD)
			bundle.AddX509Authority(newAuthority(t, time.Now().Add(time.Hour)).cert)
			document, err := bundle.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "bundle.spiffe"), document, 0o600); err != nil {
				t.Fatal(err)
			}
			c := loadText(t, strings.ReplaceAll(string(text), "@DIR@", dir))
			err = c.Preflight()
			if err == nil {
				t.Fatal("nothing is refused")
			}
			refused := regexp.MustCompile(`agent\.conf:\d+: (plugins\.\S+): (?:not supported|token_path): `)
			var got []string
			for _, line := range strings.Split(err.Error(), "\n") {
				if m := refused.FindStringSubmatch(line); m != nil {
					line = m[1]
				}
				got = append(got, line)
			}
			want := []string{"plugins.NodeAttestor.k8s_psat"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}
