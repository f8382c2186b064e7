package kube

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
)

// pod is one of the program in ./workload.
type pod struct {
	ns, name, verb string
	labels         map[string]string
	account        string            // default: default
	env            map[string]string // beside the socket's
	hostPath       bool              // reach the agent without CSI
	apart          bool              // reach no agent at all
	socketDir      string            // on the node; default: that of deploy/kubernetes
	socket         string            // its name there; default: api.sock
	hostPID        bool
	privileged     bool
	volumes        []volumeMount // of the node
}

type volumeMount struct{ from, at string }

// manifest is its YAML.
func (p pod) manifest() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  namespace: %s\n  labels: {app: %s", p.name, p.ns, p.name)
	for k, v := range p.labels {
		line("    , %s: %q", k, v)
	}
	line("  }")
	b.WriteString(p.spec(""))
	return b.String()
}

// spec is the pod's, indented.
func (p pod) spec(indent string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, indent+format+"\n", args...) }
	line("spec:")
	line("  terminationGracePeriodSeconds: 1")
	if p.account != "" {
		line("  serviceAccountName: %s", p.account)
	}
	if p.hostPID {
		line("  hostPID: true")
	}
	line("  containers:")
	line("    - name: main")
	line("      image: localhost/credence-test-workload:dev")
	line("      imagePullPolicy: IfNotPresent")
	line("      args: [%s]", p.verb)
	if p.privileged {
		line("      securityContext: {privileged: true}")
	} else {
		line("      securityContext: {runAsUser: 1000, runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}")
	}
	line("      env:")
	line("        - {name: SPIFFE_ENDPOINT_SOCKET, value: %q}", "unix:///spiffe/"+cmp.Or(p.socket, "api.sock"))
	for k, v := range p.env {
		line("        - {name: %s, value: %q}", k, v)
	}
	line("      volumeMounts:")
	line("        - {name: tmp, mountPath: /scratch}")
	if !p.apart {
		line("        - {name: spiffe, mountPath: /spiffe, readOnly: true}")
	}
	for i, v := range p.volumes {
		line("        - {name: v%d, mountPath: %s}", i, v.at)
	}
	line("  volumes:")
	line("    - {name: tmp, emptyDir: {}}")
	switch {
	case p.apart:
	case p.hostPath:
		line("    - {name: spiffe, hostPath: {path: %s, type: Directory}}", cmp.Or(p.socketDir, "/run/credence/agent/public"))
	default:
		line("    - {name: spiffe, csi: {driver: csi.spiffe.io, readOnly: true}}")
	}
	for i, v := range p.volumes {
		line("    - {name: v%d, hostPath: {path: %s, type: DirectoryOrCreate}}", i, v.from)
	}
	return b.String()
}

// start makes the pod; it goes with its namespace.
func (p pod) start(t *testing.T) {
	t.Helper()
	apply(t, p.manifest())
}

// id awaits an X509-SVID of that path.
func (p pod) id(t *testing.T, path string) event {
	t.Helper()
	want := "spiffe://" + trustDomain + path
	return await(t, p.ns, p.name, "an X509-SVID of "+want, func(e event) bool { return e.What == "x509" && e.ID == want })
}

// ids are all it has had.
func (p pod) ids(t *testing.T) map[string]int {
	t.Helper()
	all := make(map[string]int)
	for _, e := range events(t, p.ns, p.name) {
		if e.What == "x509" {
			all[e.ID]++
		}
	}
	return all
}
