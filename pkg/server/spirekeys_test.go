package server

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/config/configtest"
	"github.com/credence-id/credence/pkg/publish/k8sbundle"
	"github.com/credence-id/credence/pkg/publish/k8sconfigmap"
)

// TestEveryKeyOfSPIREIsKnown takes the keys from SPIRE's source.
func TestEveryKeyOfSPIREIsKnown(t *testing.T) {
	t.Parallel()
	known := lastParts(config.Keys(Config{}))
	keys := configtest.SPIREKeys(t, "cmd/spire-server/cli/run/run.go", "pkg/common/telemetry/config.go", "pkg/common/health/config.go", "pkg/server/authpolicy/policy.go")
	if len(keys) < 80 {
		t.Fatalf("found only %d keys: is SPIRE_SRC the source of SPIRE?", len(keys))
	}
	for _, key := range keys {
		if key != "https_web" && key != "https_spiffe" && !slices.Contains(known, key) { // names of sections, which a map takes
			t.Errorf("%s is not known", key)
		}
	}
}

// lastParts are the keys without their sections.
func lastParts(keys []string) []string {
	for i, k := range keys {
		keys[i] = path.Base(strings.ReplaceAll(k, ".", "/"))
	}
	return keys
}

// TestEveryPluginOfSPIREIsKnown takes the built-in plugins and the keys of their
// data from SPIRE's source. Folders are called as the plugins, without _ and -.
func TestEveryPluginOfSPIREIsKnown(t *testing.T) {
	t.Parallel()
	ours := map[string][]string{
		"KeyManager disk":         config.Keys(diskData{}),
		"KeyManager memory":       {},
		"NodeAttestor join_token": {},
		"NodeAttestor x509pop":    config.Keys(x509pop.VerifierConfig{}),

		"NodeAttestor k8s_psat":         lastParts(config.Keys(k8spsat.VerifierConfig{})),
		"BundlePublisher k8s_configmap": lastParts(config.Keys(k8sconfigmap.Config{})),
		"Notifier k8sbundle":            lastParts(config.Keys(k8sbundle.Config{})),
	}
	for _, l := range later {
		ours[l.Type+" "+l.Name] = l.DataKeys()
	}
	also := map[string][]string{
		"hashicorpvault": {"pkg/server/common/vault"}, "vault": {"pkg/server/common/vault"}, "sshpop": {"pkg/common/plugin/sshpop"},
	}
	notServers := []string{"host_key_path", "host_cert_path"} // of the agent's half of sshpop
	for _, kind := range []string{"BundlePublisher", "CredentialComposer", "KeyManager", "NodeAttestor", "Notifier", "UpstreamAuthority"} {
		below := "pkg/server/plugin/" + strings.ToLower(kind)
		folders, err := os.ReadDir(filepath.Join(configtest.Source(t), below))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range folders {
			if !f.IsDir() || slices.Contains([]string{"base", "common", "test"}, f.Name()) {
				continue
			}
			name, known := configtest.Plugin(ours, kind, f.Name())
			if name == "" {
				t.Errorf("%s %s is not known", kind, f.Name())
				continue
			}
			for _, key := range configtest.SPIREKeys(t, append(also[f.Name()], path.Join(below, f.Name()))...) {
				if !slices.Contains(known, key) && !slices.Contains(notServers, key) {
					t.Errorf("%s: %s is not known", name, key)
				}
			}
		}
	}
	sql := config.Keys(sqlData{})
	for _, key := range configtest.SPIREKeys(t, "pkg/server/datastore/sqlcommon/config.go") {
		if under := []string{"aws_mysql", "aws_postgres", "region", "access_key_id", "secret_access_key"}; !slices.Contains(sql, key) && !slices.Contains(under, key) {
			t.Errorf("DataStore sql: %s is not known", key)
		}
	}
}

// TestSPIREsFullConfiguration is understood; what is refused is refused by name.
func TestSPIREsFullConfiguration(t *testing.T) {
	t.Parallel()
	c, err := Load(filepath.Join(configtest.Source(t), "conf", "server", "server_full.conf"), false)
	if err != nil {
		t.Fatal(err)
	}
	problems := c.Validate()
	if problems == nil {
		t.Fatal("nothing is refused")
	}
	for _, problem := range strings.Split(problems.Error(), "\n") {
		if !slices.ContainsFunc([]string{"not supported: "}, func(s string) bool { return strings.Contains(problem, s) }) {
			t.Error(problem)
		}
	}
}
