package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/attest/workload/k8s"
	"github.com/credence-id/credence/pkg/attest/workload/unix"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/config/configtest"
)

// TestTheFullConfigurationHasEveryKey: each key is in agent_full.conf, and with
// all of them switched on, nothing is wrong but what this version does not
// support or what excludes another.
func TestTheFullConfigurationHasEveryKey(t *testing.T) {
	t.Parallel()
	keys := slices.Concat(config.Keys(Config{}), config.Keys(diskData{}), config.Keys(unix.Config{}), config.Keys(k8s.Config{}), config.Keys(x509pop.ProverConfig{}))
	on := configtest.EveryKey(t, "../../conf/agent/agent_full.conf", keys)
	c := loadText(t, on)
	problems := c.Validate()
	if problems == nil {
		t.Fatal("with every key switched on nothing is refused")
	}
	for _, problem := range strings.Split(problems.Error(), "\n") {
		if !slices.ContainsFunc([]string{"not supported: ", "only one NodeAttestor", "is exclusive with", "must begin with http://", "which disable_kubelet_client says is not asked"}, func(s string) bool { return strings.Contains(problem, s) }) {
			t.Error(problem)
		}
	}
	notices, refused := c.unsupported()
	if len(notices) == 0 || refused == nil {
		t.Errorf("%d keys are accepted, refused: %v", len(notices), refused)
	}
	const accepted = "plugins.WorkloadAttestor.k8s.plugin_data.use_new_container_locator"
	if !slices.ContainsFunc(c.pluginNotices(), func(n config.Notice) bool { return n.Key == accepted && n.Reason != "" }) {
		t.Errorf("no notice of %s in %v", accepted, c.pluginNotices())
	}
}
