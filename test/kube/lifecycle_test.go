package kube

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// traffic is a server and a client of mutual TLS, whose certificates are renewed
// each half minute.
type traffic struct {
	ns          string
	serve, call pod
	t           *testing.T
}

func newTraffic(t *testing.T, name string) *traffic {
	t.Helper()
	ns := namespace(t, name)
	entry(t, "/"+name, "-selector", "k8s:ns:"+ns, "-x509SVIDTTL", "60")
	f := &traffic{ns: ns, t: t, serve: pod{ns: ns, name: "serve", verb: "serve"}}
	f.serve.start(t)
	await(t, ns, "serve", "the server", func(e event) bool { return e.What == "serving" })
	ip := kubectl(t, "-n", ns, "get", "pod", "serve", "-o", "jsonpath={.status.podIP}")
	f.call = pod{ns: ns, name: "call", verb: "call", env: map[string]string{"PEER": ip + ":8443"}}
	f.call.start(t)
	await(t, ns, "call", "a call", func(e event) bool { return e.What == "called" })
	return f
}

// well checks that calls went on until now, and that none has failed.
func (f *traffic) well(since time.Time) {
	f.t.Helper()
	last := 0
	for _, e := range events(f.t, f.ns, "call") {
		switch e.What {
		case "broken":
			f.t.Errorf("call %d, %v after the beginning: %s", e.Count, time.UnixMilli(e.At).Sub(since).Round(time.Millisecond), e.Error)
		case "called":
			last = e.Count
		}
	}
	await(f.t, f.ns, "call", "calls after it", func(e event) bool { return e.What == "called" && e.Count > last })
	f.t.Logf("%d calls", last)
}

// TestAgentUpgraded: the agents are restarted and replaced under traffic.
func TestAgentUpgraded(t *testing.T) {
	need(t)
	f := newTraffic(t, "upgrade")
	start := time.Now()
	kubectl(t, "-n", home, "rollout", "restart", "daemonset/credence-agent")
	kubectl(t, "-n", home, "rollout", "status", "daemonset/credence-agent", "--timeout=120s")
	kubectl(t, "-n", home, "set", "image", "daemonset/credence-agent",
		"agent=localhost/credence-agent:next", "csi=localhost/credence-agent:next")
	kubectl(t, "-n", home, "rollout", "status", "daemonset/credence-agent", "--timeout=120s")
	t.Logf("restarted and upgraded in %v", time.Since(start).Round(time.Second))
	// A new pod gets its identity from the new agent, over a mount that is new;
	// the old ones theirs, over mounts that are older than the agent.
	p := pod{ns: f.ns, name: "after", verb: "watch"}
	p.start(t)
	p.id(t, "/upgrade")
	time.Sleep(65 * time.Second) // every certificate from before has expired
	f.well(start)
}

// TestServerRestarted: the server's pod is deleted under traffic.
func TestServerRestarted(t *testing.T) {
	need(t)
	f := newTraffic(t, "server")
	start := time.Now()
	kubectl(t, "-n", home, "delete", "pod", "credence-server-0")
	kubectl(t, "-n", home, "rollout", "status", "statefulset/credence-server", "--timeout=120s")
	t.Logf("the server is back after %v", time.Since(start).Round(time.Millisecond))
	entry(t, "/server/later", "-selector", "k8s:ns:"+f.ns, "-selector", "k8s:pod-name:later")
	p := pod{ns: f.ns, name: "later", verb: "watch"}
	p.start(t)
	p.id(t, "/server/later")
	f.well(start)
}

// mountsBelow counts the node's mounts of the CSI driver in a pod.
func mountsBelow(t *testing.T, ns, name, uid string) map[string]int {
	t.Helper()
	p := pod{ns: ns, name: name, verb: "mounts", apart: true, hostPID: true, privileged: true, env: map[string]string{
		"MOUNTS": "/var/lib/kubelet/pods/" + uid, "SUFFIX": "/mount",
	}}
	p.start(t)
	await(t, ns, name, "the count", func(e event) bool { return e.What == "counted" })
	at := make(map[string]int)
	for _, e := range events(t, ns, name) {
		if e.What == "mount" && strings.Contains(e.ID, "kubernetes.io~csi") {
			at[e.ID] += e.Count
		}
	}
	kubectl(t, "-n", ns, "delete", "pod", name, "--wait=false")
	return at
}

// TestKubeletRestarts: each start of the kubelet publishes every volume again;
// there is one mount all the same.
func TestKubeletRestarts(t *testing.T) {
	needDisruption(t, "KUBELET_RESTART")
	ns := namespace(t, "kubelet")
	entry(t, "/kubelet", "-selector", "k8s:ns:"+ns, "-selector", "k8s:pod-name:one")
	p := pod{ns: ns, name: "one", verb: "watch"}
	p.start(t)
	p.id(t, "/kubelet")
	uid := kubectl(t, "-n", ns, "get", "pod", "one", "-o", "jsonpath={.metadata.uid}")
	for range 3 {
		disrupt(t, "KUBELET_RESTART")
		since := time.Now()
		within(t, patience, "the kubelet answers again", func() bool {
			_, err := tryKubectl("", "-n", ns, "logs", "one", "--tail=1")
			return err == nil && time.Since(since) > 3*time.Second // it syncs its pods
		})
	}
	at := mountsBelow(t, ns, "count", uid)
	if len(at) != 1 {
		t.Errorf("mounts %v, want one", at)
	}
	for point, n := range at {
		if n != 1 {
			t.Errorf("%d mounts at %s, want one", n, point)
		}
	}
	if got := events(t, ns, "one"); got[len(got)-1].What == "refused" {
		t.Errorf("the pod was refused: %+v", got)
	}
	// And none is left when the pod is gone.
	kubectl(t, "-n", ns, "delete", "pod", "one", "--timeout=60s")
	within(t, patience, "no mount is left", func() bool { return len(mountsBelow(t, ns, "after-"+suffix(), uid)) == 0 })
}

// disrupt runs the command in a variable.
func disrupt(t *testing.T, variable string) {
	t.Helper()
	if out, err := command(context.Background(), "", "sh", "-c", os.Getenv(variable)); err != nil {
		t.Fatalf("%s: %s %v", variable, out, err)
	}
}

func suffix() string { return strings.ReplaceAll(time.Now().Format("150405.000"), ".", "") }

// TestAPIServerAway: for a minute the API server does not answer; what is known
// is used.
func TestAPIServerAway(t *testing.T) {
	needDisruption(t, "APISERVER_STOP", "APISERVER_START")
	f := newTraffic(t, "away")
	p := pod{ns: f.ns, name: "again", verb: "again"}
	p.start(t)
	p.id(t, "/away")
	start := time.Now()
	disrupt(t, "APISERVER_STOP")
	stopped := true
	defer func() {
		if stopped {
			disrupt(t, "APISERVER_START")
		}
	}()
	if _, err := tryKubectl("", "--request-timeout=2s", "get", "nodes"); err == nil {
		t.Fatal("the API server answers though it was stopped")
	}
	time.Sleep(time.Minute)
	disrupt(t, "APISERVER_START")
	stopped = false
	within(t, patience, "the API server is back", func() bool {
		_, err := tryKubectl("", "--request-timeout=2s", "get", "nodes")
		return err == nil
	})
	answers := 0
	for _, e := range events(t, f.ns, "again") {
		switch at := time.UnixMilli(e.At); {
		case at.Before(start) || at.After(start.Add(time.Minute)):
		case e.What == "x509":
			answers++
		default:
			t.Errorf("%v into it: %s %s", at.Sub(start), e.What, e.Error)
		}
	}
	t.Logf("%d new calls were answered meanwhile", answers)
	if answers < 20 {
		t.Errorf("%d calls were answered in a minute, want one each second or two", answers)
	}
	f.well(start)
	// What comes afterwards is served as before.
	after := pod{ns: f.ns, name: "after", verb: "watch"}
	after.start(t)
	after.id(t, "/away")
}
