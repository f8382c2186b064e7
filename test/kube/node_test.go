package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// ghost is an agent that runs in a pod of this cluster, with the token of an
// agent on a node that is an object and no machine.
const ghost = `
apiVersion: v1
kind: ConfigMap
metadata: {name: ghost, namespace: %[1]s}
data:
  token: %[2]q
  bundle.spiffe: %[3]q
  agent.conf: |
    agent {
        trust_domain = "example.org"
        server_address = "%[4]s"
        server_port = 8081
        socket_path = "/run/credence/agent/public/api.sock"
        data_dir = "/run/credence/data"
        trust_bundle_path = "/ghost/bundle.spiffe"
        trust_bundle_format = "spiffe"
    }
    plugins {
        KeyManager "memory" { plugin_data {} }
        NodeAttestor "k8s_psat" { plugin_data { cluster = "cluster" token_path = "/ghost/token" } }
        WorkloadAttestor "unix" { plugin_data {} }
    }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ghost, namespace: credence}
spec:
  podSelector: {matchLabels: {app.kubernetes.io/name: credence, app.kubernetes.io/component: server}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ghost, namespace: %[1]s}
spec:
  hostPID: true
  terminationGracePeriodSeconds: 1
  containers:
    - name: agent
      image: localhost/credence-agent:dev
      imagePullPolicy: IfNotPresent
      command: [/opt/credence/bin/credence-agent, run, -config, /ghost/agent.conf]
      volumeMounts: [{name: ghost, mountPath: /ghost}, {name: run, mountPath: /run/credence}]
  volumes:
    - {name: ghost, configMap: {name: ghost}}
    - {name: run, emptyDir: {}}
`

// TestNodeDeleted (S14): the agent of a node that is deleted is thrown out at
// once, and what the server knew of it is gone.
func TestNodeDeleted(t *testing.T) {
	need(t)
	ns := namespace(t, "ghost")
	// Agents go everywhere; the pod of this story is to go to a machine.
	apply(t, `{apiVersion: v1, kind: Node, metadata: {name: credence-test-ghost, labels: {kubernetes.io/os: linux}},
  spec: {taints: [{key: credence-test-ghost, effect: NoSchedule}]},
  status: {capacity: {cpu: 1, memory: 4Gi, pods: 10}, allocatable: {cpu: 1, memory: 4Gi, pods: 10}}}`)
	gone := false
	t.Cleanup(func() {
		if gone {
			return
		}
		if _, err := tryKubectl("", "delete", "node", "credence-test-ghost"); err != nil {
			t.Error(err)
		}
	})
	uid := kubectl(t, "get", "node", "credence-test-ghost", "-o", "jsonpath={.metadata.uid}")
	// The DaemonSet wants an agent there.
	var agent []string
	within(t, patience, "the pod of the ghost's agent", func() bool {
		agent = strings.Fields(kubectl(t, "-n", home, "get", "pods", "--field-selector", "spec.nodeName=credence-test-ghost",
			"-o", "jsonpath={.items[*].metadata.name} {.items[*].metadata.uid}"))
		return len(agent) == 2
	})
	token := kubectl(t, "-n", home, "create", "token", "credence-agent", "--audience", "spire-server",
		"--bound-object-kind", "Pod", "--bound-object-name", agent[0], "--bound-object-uid", agent[1])
	bundle := kubectl(t, "-n", home, "get", "configmap", "spire-bundle", "-o", `jsonpath={.data.bundle\.spiffe}`)
	address := kubectl(t, "-n", home, "get", "service", "credence-server", "-o", "jsonpath={.spec.clusterIP}")
	apply(t, fmt.Sprintf(ghost, ns, strings.TrimSpace(token), bundle, address))
	t.Cleanup(func() {
		if _, err := tryKubectl("", "-n", home, "delete", "networkpolicy", "ghost"); err != nil {
			t.Error(err)
		}
	})
	listed := func() bool { return strings.Contains(server(t, "agent", "list"), "/spire/agent/k8s_psat/cluster/"+uid) }
	within(t, patience, "the ghost's agent attests", listed)
	start := time.Now()
	kubectl(t, "delete", "node", "credence-test-ghost", "--wait=false")
	gone = true
	within(t, 10*time.Second, "the ghost's agent is gone from the server", func() bool { return !listed() })
	t.Logf("node deleted to agent gone, with the time of two commands: %v", time.Since(start).Round(time.Millisecond))
	within(t, patience, "the ghost's agent is refused", func() bool {
		out, err := tryKubectl("", "-n", ns, "logs", "ghost", "--tail=50")
		return err == nil && strings.Contains(out, "refused") || strings.Contains(out, "PermissionDenied")
	})
	out, _ := tryKubectl("", "-n", ns, "logs", "ghost", "--tail=5")
	t.Logf("the ghost says:\n%s", out)
	if listed() {
		t.Error("the ghost's agent has come back")
	}
}
