package kube

import (
	"os"
	"path/filepath"
	"testing"
)

// manager is spire-controller-manager beside the server, on its socket.
const manager = `
apiVersion: v1
kind: ConfigMap
metadata: {name: credence-test-manager, namespace: credence}
data:
  config.yaml: |
    apiVersion: spire.spiffe.io/v1alpha1
    kind: ControllerManagerConfig
    metrics: {bindAddress: "127.0.0.1:8082"}
    health: {healthProbeBindAddress: "127.0.0.1:8083"}
    leaderElection: {leaderElect: false}
    entryIDPrefix: scm
    clusterName: cluster
    clusterDomain: cluster.local
    trustDomain: example.org
    ignoreNamespaces: [kube-system, "^credence$"] # these are patterns
    spireServerSocketPath: /run/credence/server/private/api.sock
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: credence-test-manager}
rules:
  - {apiGroups: [""], resources: [pods, nodes, namespaces, endpoints], verbs: [get, list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
  - {apiGroups: [spire.spiffe.io], resources: ["*"], verbs: [get, list, watch, create, update, patch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: credence-test-manager}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: credence-test-manager}
subjects: [{kind: ServiceAccount, name: credence-server, namespace: credence}]
`

const managerPatch = `
spec:
  template:
    spec:
      containers:
        - name: controller-manager
          image: localhost/controller-manager:dev
          imagePullPolicy: IfNotPresent
          args: [--config=/manager/config.yaml]
          env: [{name: ENABLE_WEBHOOKS, value: "false"}]
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: manager, mountPath: /manager}, {name: run, mountPath: /run/credence}]
      volumes: [{name: manager, configMap: {name: credence-test-manager}}]
`

const clusterSPIFFEID = `
apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterSPIFFEID
metadata: {name: credence-test}
spec:
  spiffeIDTemplate: "spiffe://{{ .TrustDomain }}/managed/{{ .PodMeta.Namespace }}/{{ .PodSpec.ServiceAccountName }}"
  podSelector: {matchLabels: {managed: "yes"}}
`

// TestControllerManager: spire-controller-manager, built elsewhere, drives our
// server by its objects. CONTROLLER_MANAGER_CRDS is the folder of its CRDs; its
// image is localhost/controller-manager:dev.
func TestControllerManager(t *testing.T) {
	need(t)
	crds := os.Getenv("CONTROLLER_MANAGER_CRDS")
	if crds == "" {
		t.Skip("needs spire-controller-manager: set CONTROLLER_MANAGER_CRDS to the folder of its CRDs, and load its image as localhost/controller-manager:dev")
	}
	files, err := filepath.Glob(filepath.Join(crds, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRDs in %s: %v", crds, err)
	}
	for _, f := range files {
		kubectl(t, "apply", "-f", f)
	}
	kubectl(t, "wait", "--for=condition=Established", "crd/clusterspiffeids.spire.spiffe.io", "--timeout=30s")
	apply(t, manager)
	kubectl(t, "-n", home, "patch", "statefulset", "credence-server", "-p", managerPatch)
	t.Cleanup(func() {
		for _, args := range [][]string{
			{"delete", "clusterspiffeid", "credence-test", "--ignore-not-found"},
			{"-n", home, "rollout", "undo", "statefulset/credence-server"},
			{"-n", home, "rollout", "status", "statefulset/credence-server", "--timeout=120s"},
			{"delete", "clusterrole,clusterrolebinding", "credence-test-manager"},
		} {
			if _, err := tryKubectl("", args...); err != nil {
				t.Error(err)
			}
		}
	})
	kubectl(t, "-n", home, "rollout", "status", "statefulset/credence-server", "--timeout=120s")
	ns := namespace(t, "managed")
	apply(t, clusterSPIFFEID)
	p := pod{ns: ns, name: "one", verb: "watch", labels: map[string]string{"managed": "yes"}}
	p.start(t)
	e := p.id(t, "/managed/"+ns+"/default")
	t.Logf("pod made to SVID by a ClusterSPIFFEID: %.0f ms after its container's start", e.Since)
	// The object goes, and the identity with it.
	kubectl(t, "delete", "clusterspiffeid", "credence-test")
	await(t, ns, "one", "a refusal", func(r event) bool { return r.What == "refused" && r.At > e.At })
}
