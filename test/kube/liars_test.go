package kube

import (
	"strings"
	"testing"
)

// victim is a pod with an identity that others are after.
func victim(t *testing.T, ns string) pod {
	t.Helper()
	entry(t, "/victim", "-selector", "k8s:ns:"+ns, "-selector", "k8s:pod-name:victim")
	v := pod{ns: ns, name: "victim", verb: "watch"}
	v.start(t)
	v.id(t, "/victim")
	return v
}

// TestHostPIDIsNoDisguise: a pod that shares the host's PIDs is itself.
func TestHostPIDIsNoDisguise(t *testing.T) {
	need(t)
	ns := namespace(t, "hostpid")
	victim(t, ns)
	entry(t, "/hostpid", "-selector", "k8s:ns:"+ns, "-selector", "k8s:pod-name:liar")
	liar := pod{ns: ns, name: "liar", verb: "watch", hostPID: true}
	liar.start(t)
	liar.id(t, "/hostpid")
	if got := liar.ids(t); len(got) != 1 {
		t.Errorf("it has had %v, want its own alone", got)
	}
}

// TestNestedControlGroup: a pod that makes a control group named like another's
// below its own, and lives there, is itself or nobody.
func TestNestedControlGroup(t *testing.T) {
	need(t)
	ns := namespace(t, "nested")
	victim(t, ns)
	uid := kubectl(t, "-n", ns, "get", "pod", "victim", "-o", "jsonpath={.metadata.uid}")
	container := kubectl(t, "-n", ns, "get", "pod", "victim", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	_, id, _ := strings.Cut(container, "://")
	for _, form := range []string{
		"pod" + uid + "/" + id,
		"kubepods/besteffort/pod" + uid + "/" + id,
		"kubepods-besteffort-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-" + id + ".scope",
	} {
		liar := pod{
			ns: ns, name: "liar-" + suffix(), verb: "nested", privileged: true, hostPID: true,
			env: map[string]string{"VICTIM": form}, volumes: []volumeMount{{"/sys/fs/cgroup", "/host-cgroup"}},
		}
		liar.start(t)
		moved := await(t, ns, liar.name, "its move", func(e event) bool { return e.What == "moved" })
		if moved.Count == 0 {
			t.Errorf("%s: it could not move at all, which proves nothing", form)
		}
		e := await(t, ns, liar.name, "an answer", func(e event) bool { return e.What == "refused" || e.What == "x509" })
		if e.What != "refused" {
			t.Errorf("%s: moved in %d hierarchies, it was taken for %s", form, moved.Count, e.ID)
		}
		t.Logf("%s: moved in %d hierarchies, refused: %s", form, moved.Count, e.Error)
		kubectl(t, "-n", ns, "delete", "pod", liar.name, "--wait=false")
	}
}

// TestSocketHandedOn: a connection is of the process that made it, and ends with
// it.
func TestSocketHandedOn(t *testing.T) {
	need(t)
	ns := namespace(t, "handed")
	entry(t, "/handed", "-selector", "k8s:ns:"+ns, "-selector", "k8s:pod-name:giver")
	meet := []volumeMount{{"/run/credence-test", "/meet"}}
	env := map[string]string{"MEET": "/meet/" + ns + ".sock"}
	giver := pod{ns: ns, name: "giver", verb: "hand", privileged: true, env: env, volumes: meet}
	taker := pod{ns: ns, name: "taker", verb: "take", privileged: true, env: env, volumes: meet}
	giver.start(t)
	taker.start(t)
	await(t, ns, "taker", "the socket", func(e event) bool { return e.What == "taken" })
	e := await(t, ns, "taker", "an answer", func(e event) bool { return e.What == "refused" || e.What == "x509" || e.What == "failed" })
	if e.What == "x509" {
		t.Errorf("who was handed the socket got %s", e.ID)
	}
	t.Logf("%s: %s", e.What, e.Error)
}
