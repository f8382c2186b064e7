package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// charted is a server and its agents as the chart of SPIRE makes them: its files,
// its paths, its rights, and our images.
const charted = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: t-server, namespace: NS}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: t-agent, namespace: NS}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: NS-server}
rules:
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [get, watch, list, create]}
  - {apiGroups: [""], resources: [nodes, pods], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: NS-server}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: NS-server}
subjects: [{kind: ServiceAccount, name: t-server, namespace: NS}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: NS-agent}
rules:
  - {apiGroups: [""], resources: [pods, nodes, nodes/proxy], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: NS-agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: NS-agent}
subjects: [{kind: ServiceAccount, name: t-agent, namespace: NS}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: t-bundle, namespace: NS}
rules:
  - {apiGroups: [""], resources: [configmaps], resourceNames: [spire-bundle], verbs: [get, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: t-bundle, namespace: NS}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: t-bundle}
subjects: [{kind: ServiceAccount, name: t-server, namespace: NS}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: spire-bundle, namespace: NS}
---
apiVersion: v1
kind: Service
metadata: {name: t-server, namespace: NS}
spec:
  selector: {app: t-server}
  ports: [{name: grpc, port: 443, targetPort: grpc}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: t-server, namespace: NS}
spec:
  serviceName: t-server
  selector: {matchLabels: {app: t-server}}
  template:
    metadata: {labels: {app: t-server}}
    spec:
      serviceAccountName: t-server
      securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000}
      containers:
        - name: spire-server
          image: localhost/credence-server:dev
          imagePullPolicy: IfNotPresent
          args: [-expandEnv, -config, /run/spire/server/config/server.conf]
          securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
          ports: [{name: grpc, containerPort: 8081}, {name: healthz, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /ready, port: healthz}, periodSeconds: 1}
          volumeMounts:
            - {name: config, mountPath: /run/spire/server/config, readOnly: true}
            - {name: private, mountPath: /tmp/spire-server/private}
            - {name: data, mountPath: /run/spire/data}
            - {name: tmp, mountPath: /tmp}
      volumes:
        - {name: config, configMap: {name: t-config}}
        - {name: private, emptyDir: {}}
        - {name: data, emptyDir: {}}
        - {name: tmp, emptyDir: {}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: t-agent, namespace: NS}
spec:
  selector: {matchLabels: {app: t-agent}}
  template:
    metadata: {labels: {app: t-agent}}
    spec:
      serviceAccountName: t-agent
      hostPID: true
      hostNetwork: true
      hostAliases: [{ip: SERVER, hostnames: [t-server.NS]}]
      containers:
        - name: spire-agent
          image: localhost/credence-agent:dev
          imagePullPolicy: IfNotPresent
          args: [-config, /opt/spire/conf/agent/agent.conf]
          env: [{name: MY_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          readinessProbe: {httpGet: {path: /ready, port: 9982}, periodSeconds: 1}
          volumeMounts:
            - {name: config, mountPath: /opt/spire/conf/agent, readOnly: true}
            - {name: bundle, mountPath: /run/spire/bundle, readOnly: true}
            - {name: sockets, mountPath: /run/spire/sockets}
            - {name: token, mountPath: /var/run/secrets/tokens}
            - {name: data, mountPath: /run/spire/data}
      volumes:
        - {name: config, configMap: {name: t-config}}
        - {name: bundle, configMap: {name: spire-bundle, items: [{key: bundle.spiffe, path: bundle.spiffe}]}}
        - {name: sockets, hostPath: {path: /run/credence-test/chart, type: DirectoryOrCreate}}
        - {name: token, projected: {sources: [{serviceAccountToken: {path: spire-agent, expirationSeconds: 7200, audience: spire-server}}]}}
        - {name: data, emptyDir: {}}
`

// chartFile is what the chart writes, for these paths and this namespace.
func chartFile(t *testing.T, path, ns string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(), "../shared/data", path))
	if err != nil {
		t.Skipf("the files that the chart writes are not here: %v", err)
	}
	return strings.NewReplacer(
		"@DIR@/data", "/run/spire/data", "@DIR@/agent", "/run/spire/data",
		"@DIR@/spire-agent.sock", "/run/spire/sockets/spire-agent.sock", "@DIR@/bundle.spiffe", "/run/spire/bundle/bundle.spiffe",
		`"default:t-agent"`, `"`+ns+`:t-agent"`, `"namespace": "default"`, `"namespace": "`+ns+`"`, "t-server.default", "t-server."+ns,
	).Replace(string(text))
}

// TestChartOfSPIRE: what SPIRE's chart configures runs with our images.
func TestChartOfSPIRE(t *testing.T) {
	need(t)
	ns := namespace(t, "chart")
	t.Cleanup(func() {
		for _, role := range []string{"server", "agent"} {
			if _, err := tryKubectl("", "delete", "clusterrole,clusterrolebinding", ns+"-"+role); err != nil {
				t.Error(err)
			}
		}
	})
	dir := t.TempDir()
	for name, path := range map[string]string{
		"server.conf": "chart-server.json", "agent.conf": "chart-agent.json",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(chartFile(t, path, ns)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, "-n", ns, "create", "configmap", "t-config", "--from-file", dir)
	manifests := strings.ReplaceAll(charted, "NS", ns)
	parts := strings.SplitAfter(manifests, "ports: [{name: grpc, port: 443, targetPort: grpc}]\n")
	apply(t, parts[0])
	address := kubectl(t, "-n", ns, "get", "service", "t-server", "-o", "jsonpath={.spec.clusterIP}")
	apply(t, strings.ReplaceAll(parts[1], "SERVER", address))
	kubectl(t, "-n", ns, "rollout", "status", "statefulset/t-server", "--timeout=120s")
	kubectl(t, "-n", ns, "rollout", "status", "daemonset/t-agent", "--timeout=120s")
	spire := func(args ...string) string {
		return kubectl(t, append([]string{"-n", ns, "exec", "t-server-0", "--", "/opt/spire/bin/spire-server"}, args...)...)
	}
	t.Log(spire("agent", "list"))
	spire("entry", "create", "-node", "-spiffeID", nodeAlias, "-selector", "k8s_psat:cluster:example-cluster")
	spire("entry", "create", "-parentID", nodeAlias, "-spiffeID", "spiffe://example.org/charted",
		"-selector", "k8s:ns:"+ns, "-selector", "k8s:container-name:main")
	p := pod{ns: ns, name: "one", verb: "watch", hostPath: true, socketDir: "/run/credence-test/chart", socket: "spire-agent.sock"}
	p.start(t)
	p.id(t, "/charted")
}
