package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDeployment: each pod of a Deployment gets an X509-SVID and a JWT-SVID over
// CSI, soon.
func TestDeployment(t *testing.T) {
	need(t)
	const replicas = 12
	ns := namespace(t, "deployment")
	entry(t, "/deployment/web", "-selector", "k8s:ns:"+ns, "-selector", "k8s:sa:default")
	p := pod{ns: ns, name: "web", verb: "watch"}
	apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: %s}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
%s`, ns, replicas, p.spec("    ")))
	kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=120s")
	var first []float64
	for _, name := range strings.Fields(kubectl(t, "-n", ns, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}")) {
		one := pod{ns: ns, name: name}
		e := one.id(t, "/deployment/web")
		first = append(first, e.Since)
		await(t, ns, name, "a JWT-SVID", func(e event) bool { return e.What == "jwt" && e.ID != "" })
	}
	slices.Sort(first)
	p50 := first[len(first)/2]
	t.Logf("container start to first X509-SVID, %d pods at once: p50 %.0f ms, max %.0f ms", len(first), p50, first[len(first)-1])
	if p50 > 300 {
		t.Errorf("p50 is %.0f ms, at most 300 are wanted", p50)
	}
}

// TestContainerSelectors: an entry that names the container and its image is met
// too.
func TestContainerSelectors(t *testing.T) {
	need(t)
	ns := namespace(t, "container")
	entry(t, "/container", "-selector", "k8s:ns:"+ns, "-selector", "k8s:container-name:main",
		"-selector", "k8s:container-image:localhost/credence-test-workload:dev")
	p := pod{ns: ns, name: "one", verb: "watch"}
	p.start(t)
	t.Logf("first X509-SVID by a container's selectors: %.0f ms", p.id(t, "/container").Since)
}

// TestSameLabels: pods of two namespaces that look alike are told apart.
func TestSameLabels(t *testing.T) {
	need(t)
	var pods []pod
	for _, name := range []string{"left", "right"} {
		ns := namespace(t, name)
		entry(t, "/labels/"+name, "-selector", "k8s:ns:"+ns, "-selector", "k8s:pod-label:tier:front")
		pods = append(pods, pod{ns: ns, name: "same", verb: "watch", labels: map[string]string{"tier": "front"}})
	}
	for _, p := range pods {
		p.start(t)
	}
	for i, p := range pods {
		path := "/labels/" + []string{"left", "right"}[i]
		p.id(t, path)
		if got := p.ids(t); len(got) != 1 {
			t.Errorf("%s has had %v, want %s alone", p.ns, got, path)
		}
	}
}

// TestLabelChanges: an open stream follows the pod's labels.
func TestLabelChanges(t *testing.T) {
	need(t)
	ns := namespace(t, "change")
	for _, color := range []string{"blue", "green"} {
		entry(t, "/color/"+color, "-selector", "k8s:ns:"+ns, "-selector", "k8s:pod-label:color:"+color)
	}
	p := pod{ns: ns, name: "one", verb: "watch", labels: map[string]string{"color": "blue"}}
	p.start(t)
	p.id(t, "/color/blue")
	start := time.Now()
	kubectl(t, "-n", ns, "label", "pod", "one", "color=green", "--overwrite")
	e := p.id(t, "/color/green")
	took := time.UnixMilli(e.At).Sub(start)
	t.Logf("label changed to identity changed on the open stream, with kubectl's own time: %v", took)
	if took > time.Second {
		t.Errorf("it took %v, at most a second is wanted", took)
	}
	// And away: no label, no identity.
	kubectl(t, "-n", ns, "label", "pod", "one", "color-")
	await(t, ns, "one", "a refusal", func(e event) bool { return e.What == "refused" && e.At > start.UnixMilli() })
}

// TestHostPath: the alternative to CSI.
func TestHostPath(t *testing.T) {
	need(t)
	ns := namespace(t, "hostpath")
	entry(t, "/hostpath", "-selector", "k8s:ns:"+ns)
	p := pod{ns: ns, name: "one", verb: "watch", hostPath: true}
	p.start(t)
	p.id(t, "/hostpath")
}

// TestNobody: a pod without an entry gets no identity, and one later, without
// asking again at its own pace.
func TestNobody(t *testing.T) {
	need(t)
	ns := namespace(t, "nobody")
	p := pod{ns: ns, name: "one", verb: "watch"}
	p.start(t)
	e := await(t, ns, "one", "a refusal", func(e event) bool { return e.What == "refused" })
	if !strings.Contains(e.Error, "no identity issued") {
		t.Errorf("refused with %q", e.Error)
	}
	entry(t, "/nobody", "-selector", "k8s:ns:"+ns)
	p.id(t, "/nobody")
}
