package kube

import (
	"slices"
	"strings"
	"testing"
)

// TestZUninstalled is the last story: everything goes, and nothing is left on the
// node but an empty directory. Until then no probe has ended a CSI driver.
func TestZUninstalled(t *testing.T) {
	need(t)
	probe := kubectl(t, "-n", home, "get", "daemonset", "credence-agent",
		"-o", `jsonpath={.spec.template.spec.containers[?(@.name=="csi")].livenessProbe.exec.command}`)
	if !strings.Contains(probe, "-check") {
		t.Errorf("the CSI driver's probe is %q, want csi -check", probe)
	}
	restarts := kubectl(t, "-n", home, "get", "pods", "-l", "app.kubernetes.io/component=agent",
		"-o", `jsonpath={.items[*].status.containerStatuses[?(@.name=="csi")].restartCount}`)
	if n := strings.Fields(restarts); len(n) == 0 || slices.ContainsFunc(n, func(n string) bool { return n != "0" }) {
		t.Errorf("restarts of the CSI drivers: %v, want 0 of each", n)
	}
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
