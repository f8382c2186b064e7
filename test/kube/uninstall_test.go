package kube

import (
	"strings"
	"testing"
)

// TestZUninstalled is the last story: everything goes, and nothing is left on the
// node but an empty directory.
func TestZUninstalled(t *testing.T) {
	need(t)
	kubectl(t, "wait", "--for=delete", "namespace", "-l", storyLabel, "--timeout=120s")
	kubectl(t, "delete", "-k", "bin/kube-overlay", "--timeout=120s")
	for _, what := range []string{
		"namespace/credence", "csidriver/csi.spiffe.io", "clusterrole/credence-server", "clusterrole/credence-agent",
		"clusterrolebinding/credence-server", "clusterrolebinding/credence-agent", "priorityclass/credence-agent", "priorityclass/credence-server",
	} {
		if out, err := tryKubectl("", "get", what); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("%s is left: %s %v", what, out, err)
		}
	}
	ns := namespace(t, "left")
	if at := mountsBelow(t, ns, "count", ""); len(at) != 0 {
		t.Errorf("mounts are left on the node: %v", at)
	}
}
