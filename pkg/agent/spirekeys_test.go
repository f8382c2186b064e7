package agent

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/attest/workload/k8s"
	"github.com/credence-id/credence/pkg/attest/workload/unix"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/config/configtest"
)

// TestEveryKeyOfSPIREIsKnown takes the keys from SPIRE's source.
func TestEveryKeyOfSPIREIsKnown(t *testing.T) {
	t.Parallel()
	var known []string
	for _, k := range config.Keys(Config{}) {
		known = append(known, path.Base(strings.ReplaceAll(k, ".", "/")))
	}
	keys := configtest.SPIREKeys(t, "cmd/spire-agent/cli/run/run.go", "pkg/common/telemetry/config.go", "pkg/common/health/config.go")
	if len(keys) < 80 {
		t.Fatalf("found only %d keys: is SPIRE_SRC the source of SPIRE?", len(keys))
	}
	for _, key := range keys {
		if !slices.Contains(known, key) {
			t.Errorf("%s is not known", key)
		}
	}
}

// TestEveryPluginOfSPIREIsKnown takes the built-in plugins and the keys of their
// data from SPIRE's source. Folders are called as the plugins, without _ and -.
func TestEveryPluginOfSPIREIsKnown(t *testing.T) {
	t.Parallel()
	ours := map[string][]string{
		"KeyManager disk":         config.Keys(diskData{}),
		"KeyManager memory":       {},
		"NodeAttestor join_token": {},
		"NodeAttestor k8s_psat":   config.Keys(k8spsat.ProverConfig{}),
		"NodeAttestor x509pop":    config.Keys(x509pop.ProverConfig{}),
		"WorkloadAttestor k8s":    last(config.Keys(k8s.Config{})),
		"WorkloadAttestor unix":   config.Keys(unix.Config{}),
	}
	for _, l := range later {
		ours[l.Type+" "+l.Name] = l.DataKeys()
	}
	also := map[string][]string{
		"docker": {"pkg/agent/common/sigstore"}, "k8s": {"pkg/agent/common/sigstore"}, "sshpop": {"pkg/common/plugin/sshpop"},
	}
	notAgents := []string{"cert_authorities", "cert_authorities_path", "canonical_domain", "agent_path_template"} // of the server's half of sshpop
	for _, kind := range []string{"KeyManager", "NodeAttestor", "SVIDStore", "WorkloadAttestor"} {
		below := "pkg/agent/plugin/" + strings.ToLower(kind)
		folders, err := os.ReadDir(filepath.Join(configtest.Source(t), below))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range folders {
			if !f.IsDir() || slices.Contains([]string{"base", "test"}, f.Name()) {
				continue
			}
			name, known := configtest.Plugin(ours, kind, f.Name())
			if name == "" {
				t.Errorf("%s %s is not known", kind, f.Name())
				continue
			}
			for _, key := range configtest.SPIREKeys(t, append(also[f.Name()], path.Join(below, f.Name()))...) {
				if !slices.Contains(known, key) && !slices.Contains(notAgents, key) {
					t.Errorf("%s: %s is not known", name, key)
				}
			}
		}
	}
}

// last are keys without their sections.
func last(keys []string) []string {
	bare := make([]string, 0, len(keys))
	for _, k := range keys {
		bare = append(bare, k[strings.LastIndex(k, ".")+1:])
	}
	return bare
}

// TestSPIREsFullConfiguration is understood; what is refused is refused by name.
func TestSPIREsFullConfiguration(t *testing.T) {
	t.Parallel()
	c, err := Load(filepath.Join(configtest.Source(t), "conf", "agent", "agent_full.conf"), false)
	if err != nil {
		t.Fatal(err)
	}
	problems := c.Validate()
	if problems == nil {
		t.Fatal("nothing is refused")
	}
	for _, problem := range strings.Split(problems.Error(), "\n") {
		if !slices.ContainsFunc([]string{"not supported: ", "only one KeyManager", "only one NodeAttestor", "private_key_path: is required", "certificate_path: is required", "cluster: is required"}, func(s string) bool { return strings.Contains(problem, s) }) {
			t.Error(problem)
		}
	}
}
