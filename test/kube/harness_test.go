package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	home        = "credence" // the namespace of deploy/kubernetes
	trustDomain = "example.org"
	clusterName = "cluster"
	storyLabel  = "credence-test" // of the stories' namespaces
	nodeAlias   = "spiffe://" + trustDomain + "/node"
	// patience is for what a cluster does in its own time.
	patience = 2 * time.Minute
)

// skipReason says why there is no cluster; empty: there is one.
var skipReason string

func TestMain(m *testing.M) {
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "setting up:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func setUp() error {
	if os.Getenv("KUBECONFIG") == "" || os.Getenv("IMAGE_LOAD") == "" {
		skipReason = "needs a cluster: set KUBECONFIG, and IMAGE_LOAD to a command that loads an image archive"
		return nil
	}
	if _, err := exec.LookPath("kubectl"); err != nil {
		skipReason = "needs kubectl"
		return nil
	}
	if err := loadImages(); err != nil {
		return err
	}
	return install()
}

// need skips a story that has no cluster.
func need(t *testing.T) {
	t.Helper()
	if skipReason != "" {
		t.Skip(skipReason)
	}
}

// needDisruption skips a story that breaks parts of the cluster.
func needDisruption(t *testing.T, variables ...string) {
	t.Helper()
	need(t)
	for _, v := range append(variables, "KUBE_DISRUPT") {
		if os.Getenv(v) == "" {
			t.Skipf("breaks parts of the cluster: set %s where that does not matter", v)
		}
	}
}

// root is the root of the repository.
func root() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}

// loadImages loads the archives that `make images` has made.
func loadImages() error {
	dir := os.Getenv("KUBE_IMAGES")
	if dir == "" {
		dir = filepath.Join(root(), "bin/images")
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil || len(archives) == 0 {
		return errors.Join(fmt.Errorf("no image archives in %s: run `make images`", dir), err)
	}
	load := strings.Fields(os.Getenv("IMAGE_LOAD"))
	for _, archive := range archives {
		if _, err := command(context.Background(), "", load[0], append(load[1:], archive)...); err != nil {
			return err
		}
	}
	return nil
}

// command runs one, with input on its standard input; the error has what it
// wrote.
func command(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = root()
	cmd.Stdin = strings.NewReader(input)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), problems.String())
	}
	return out.String(), nil
}

// tryKubectl runs kubectl.
func tryKubectl(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience+time.Minute)
	defer cancel()
	return command(ctx, input, "kubectl", args...)
}

// kubectl runs kubectl and fails the test if that fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryKubectl("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies manifests, in YAML: kubectl takes what begins with { for JSON.
func apply(t *testing.T, manifests string) {
	t.Helper()
	if _, err := tryKubectl("---\n"+manifests, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// inServer runs a command of credence-server in the server's pod.
func inServer(args ...string) (string, error) {
	return tryKubectl("", append([]string{"-n", home, "exec", "credence-server-0", "-c", "server", "--", "credence-server"}, args...)...)
}

func server(t *testing.T, args ...string) string {
	t.Helper()
	out, err := inServer(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// entry registers a workload of the node alias, until the test ends.
func entry(t *testing.T, path string, flags ...string) (id string) {
	t.Helper()
	out := server(t, append([]string{"entry", "create", "-parentID", nodeAlias, "-spiffeID", "spiffe://" + trustDomain + path}, flags...)...)
	_, rest, _ := strings.Cut(out, "Entry ID")
	_, rest, _ = strings.Cut(rest, ":")
	id, _, _ = strings.Cut(strings.TrimSpace(rest), "\n")
	t.Cleanup(func() {
		if _, err := inServer("entry", "delete", "-entryID", id); err != nil {
			t.Error(err)
		}
	})
	return id
}

// namespace makes one, until the test ends.
func namespace(t *testing.T, name string) string {
	t.Helper()
	name = "credence-test-" + name
	apply(t, `{apiVersion: v1, kind: Namespace, metadata: {name: `+name+`, labels: {pod-security.kubernetes.io/enforce: privileged, `+storyLabel+`: ""}}}`)
	t.Cleanup(func() {
		// The next story has a namespace of its own; the last one sees that all go.
		if _, err := tryKubectl("", "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	// Pods cannot be made before their account is.
	within(t, patience, "the service account of "+name, func() bool {
		_, err := tryKubectl("", "-n", name, "get", "serviceaccount", "default")
		return err == nil
	})
	return name
}

// event is a line of the program in ./workload.
type event struct {
	What   string  `json:"what"`
	At     int64   `json:"at"`
	Since  float64 `json:"since"`
	ID     string  `json:"id"`
	Serial string  `json:"serial"`
	Count  int     `json:"count"`
	Error  string  `json:"error"`
}

// events are what a pod has written so far.
func events(t *testing.T, ns, pod string) []event {
	t.Helper()
	out, err := tryKubectl("", "-n", ns, "logs", pod)
	if err != nil || strings.HasPrefix(out, "unable to retrieve container logs") {
		return nil // it has not started
	}
	var all []event
	for line := range strings.Lines(out) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s wrote %q: %v", pod, line, err)
		}
		all = append(all, e)
	}
	return all
}

// await returns the first event of a pod that is as wanted.
func await(t *testing.T, ns, pod, what string, wanted func(event) bool) event {
	t.Helper()
	var found event
	within(t, patience, pod+": "+what, func() bool {
		for _, e := range events(t, ns, pod) {
			if wanted(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// within asks until the answer is yes. A cluster is asked by commands, which
// nothing tells when to ask.
func within(t *testing.T, limit time.Duration, what string, yes func() bool) {
	t.Helper()
	end := time.Now().Add(limit)
	for !yes() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s\n%s", limit, what, state())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// state is what there is to see when a story fails.
func state() string {
	var all strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--field-selector", "type!=Normal"},
		{"-n", home, "logs", "credence-server-0", "--tail=20"},
		{"-n", home, "logs", "credence-server-0", "-c", "controller-manager", "--tail=20"},
		{"-n", home, "logs", "daemonset/credence-agent", "-c", "agent", "--tail=30"},
	} {
		out, err := tryKubectl("", args...)
		fmt.Fprintf(&all, "--- %s\n%s", strings.Join(args, " "), out)
		if err != nil {
			fmt.Fprintln(&all, err)
		}
	}
	return all.String()
}
