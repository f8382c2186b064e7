package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// overlay is what a kustomization has to say of a cluster that has no names or
// no storage of its own; it is empty on others.
type overlay struct{ resources, patches []string }

// serverIP is the Service's address where there are no names.
const serverIP = "10.96.0.81"

// volume is a disk of the node, whose directory the volume of another pod makes.
const volume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: credence-test}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: credence, name: data-credence-server-0}
  local: {path: /run/credence-test/data}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]
`

const volumeMaker = `
apiVersion: v1
kind: Pod
metadata: {name: credence-test-volume, namespace: default}
spec:
  containers:
    - name: mkdir
      image: localhost/credence-test-workload:dev
      imagePullPolicy: IfNotPresent
      args: [mkdir]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes:
    - name: data
      hostPath: {path: /run/credence-test/data, type: DirectoryOrCreate}
`

const fixedIP = `
apiVersion: v1
kind: Service
metadata: {name: credence-server, namespace: credence}
spec: {clusterIP: ` + serverIP + `}
`

const hosts = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: credence-agent, namespace: credence}
spec:
  template:
    spec:
      hostAliases: [{ip: ` + serverIP + `, hostnames: [credence-server.credence.svc]}]
`

// install installs deploy/kubernetes and registers the alias of all nodes.
func install() error {
	var o overlay
	if _, err := tryKubectl("", "-n", "kube-system", "get", "service", "kube-dns"); err != nil {
		o.patches = append(o.patches, fixedIP, hosts)
	}
	classes, err := tryKubectl("", "get", "storageclass", "-o", "name")
	if err != nil {
		return err
	}
	if strings.TrimSpace(classes) == "" {
		o.resources = append(o.resources, volume)
		if _, err := tryKubectl(volumeMaker, "apply", "-f", "-"); err != nil {
			return err
		}
		if _, err := tryKubectl("", "wait", "--for=condition=Ready", "pod/credence-test-volume", "--timeout=60s"); err != nil {
			return err
		}
		if _, err := tryKubectl(volumeMaker, "delete", "--wait=false", "-f", "-"); err != nil {
			return err
		}
	}
	dir, err := o.write()
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := tryKubectl("", "apply", "-k", dir); err != nil {
		return err
	}
	for _, what := range []string{"statefulset/credence-server", "daemonset/credence-agent"} {
		if _, err := tryKubectl("", "-n", home, "rollout", "status", what, "--timeout=120s"); err != nil {
			return fmt.Errorf("%w\n%s", err, state())
		}
	}
	fmt.Fprintf(os.Stderr, "installed from nothing in %v\n", time.Since(start).Round(time.Millisecond))
	_, err = inServer("entry", "create", "-node", "-spiffeID", nodeAlias, "-selector", "k8s_psat:cluster:"+clusterName)
	return err
}

// write writes the kustomization, where it can name ours.
func (o overlay) write() (dir string, err error) {
	dir = filepath.Join(root(), "bin/kube-overlay")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", err
	}
	var text strings.Builder
	text.WriteString("resources:\n- ../../deploy/kubernetes\n")
	for i, r := range o.resources {
		name := fmt.Sprintf("resource-%d.yaml", i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(r), 0o644); err != nil {
			return "", err
		}
		text.WriteString("- " + name + "\n")
	}
	text.WriteString("patches:\n")
	for i, p := range o.patches {
		name := fmt.Sprintf("patch-%d.yaml", i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(p), 0o644); err != nil {
			return "", err
		}
		text.WriteString("- path: " + name + "\n")
	}
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text.String()), 0o644)
}

// TestInstalled: what runs is confined as it should be.
func TestInstalled(t *testing.T) {
	need(t)
	out := server(t, "agent", "list")
	if !strings.Contains(out, "k8s_psat") {
		t.Errorf("no agent has attested as k8s_psat:\n%s", out)
	}
	if out, err := tryKubectl("", "-n", home, "exec", "credence-server-0", "--", "credence-server", "healthcheck"); err != nil || !strings.Contains(out, "healthy") {
		t.Errorf("the server: %s %v", out, err)
	}
	if out, err := tryKubectl("", "-n", home, "exec", "daemonset/credence-agent", "-c", "agent", "--", "credence-agent", "healthcheck", "-verbose"); err != nil {
		t.Errorf("the agent: %s %v", out, err)
	} else {
		t.Log(out)
	}
	for _, can := range []string{"get secrets", "list secrets", "get pods", "create pods", "get configmaps", "update nodes", "create tokenreviews"} {
		verb, what, _ := strings.Cut(can, " ")
		for _, who := range []string{"credence-server", "credence-agent"} {
			out, _ := tryKubectl("", "auth", "can-i", verb, what, "-A", "--as", "system:serviceaccount:"+home+":"+who)
			want := "no"
			if who == "credence-server" && can == "create tokenreviews" {
				want = "yes"
			}
			if got := strings.TrimSpace(out); got != want {
				t.Errorf("may %s %s: %s, want %s", who, can, got, want)
			}
		}
	}
}
