package k8s

import (
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/attest/workload/k8stest"
	"github.com/credence-id/credence/pkg/attest/workload/workloadtest"
	"github.com/google/go-cmp/cmp"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	subject := func(cfg func(*testing.T) Config, stalled func(*testing.T) Config) workloadtest.Subject {
		return workloadtest.Subject{
			New: func(t *testing.T) workload.Attestor { return start(t, cfg(t), Options{}) },
			One: process(uidOne, id("1")), WantOne: oneSelectors(),
			Two: process(uidTwo, id("2")), WantTwo: twoSelectors(),
			Stalled: func(t *testing.T) (workload.Attestor, *workloadtest.Process) {
				return start(t, stalled(t), Options{}), process(uidOne, id("1"))
			},
		}
	}
	watch := func(hang bool) func(*testing.T) Config {
		return func(t *testing.T) Config {
			api := k8stest.NewAPI(t)
			api.SetPod(onePod())
			api.SetPod(twoPod())
			if hang {
				api.Hang()
			}
			return watching(api)
		}
	}
	kubelet := func(secure, hang bool) func(*testing.T) Config {
		return func(t *testing.T) Config {
			k := k8stest.NewKubelet(t, secure)
			k.SetPods(onePod(), twoPod())
			if hang {
				t.Cleanup(k.Hold())
			}
			return asking(k)
		}
	}
	t.Run("watch", func(t *testing.T) {
		t.Parallel()
		workloadtest.Run(t, subject(watch(false), watch(true)))
	})
	t.Run("kubelet, secure port", func(t *testing.T) {
		t.Parallel()
		workloadtest.Run(t, subject(kubelet(true, false), kubelet(true, true)))
	})
	t.Run("kubelet, read-only port", func(t *testing.T) {
		t.Parallel()
		workloadtest.Run(t, subject(kubelet(false, false), kubelet(false, true)))
	})
}

// TestKindsOfContainers: init containers, sidecars and ephemeral containers are
// containers of their pod.
func TestKindsOfContainers(t *testing.T) {
	t.Parallel()
	c := func(name, digit, policy string) k8stest.Container {
		return k8stest.Container{Name: name, Image: name + ":1", ID: id(digit), ImageID: name + "@sha256:x", RestartPolicy: policy}
	}
	p := onePod()
	p.Labels, p.Owners = nil, nil
	p.Containers = []k8stest.Container{c("main", "1", ""), c("other", "2", "")}
	p.Init = []k8stest.Container{c("init", "3", ""), c("sidecar", "4", "Always")}
	p.Init[0].Ended = true
	p.Ephemeral = []k8stest.Container{c("debug", "5", "")}
	api := k8stest.NewAPI(t)
	api.SetPod(p)
	a := start(t, watching(api), Options{})
	pod := set("ns:shop-front", "sa:web-account", "node-name:"+node, "pod-uid:"+uidOne, "pod-name:web-5f6b",
		"pod-image-count:2", "pod-init-image-count:2", "pod-image:main:1", "pod-image:main@sha256:x", "pod-image:other:1", "pod-image:other@sha256:x",
		"pod-init-image:init:1", "pod-init-image:init@sha256:x", "pod-init-image:sidecar:1", "pod-init-image:sidecar@sha256:x")
	for name, digit := range map[string]string{"main": "1", "other": "2", "init": "3", "sidecar": "4", "debug": "5"} {
		got, _ := attestNow(t, a, uidOne, id(digit))
		want := with(pod, "container-name:"+name, "container-image:"+name+":1", "container-image:"+name+"@sha256:x")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got, _, err := a.Attest(soon(t), process(uidOne, id("6"))); err == nil {
		t.Errorf("a container that cannot be starting: %v", got)
	} else if !strings.Contains(err.Error(), "does not name it") {
		t.Error(err)
	}
}

// TestOutsideOfPods: nothing to say, and nobody to ask.
func TestOutsideOfPods(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.Hang()
	a := start(t, watching(api), Options{})
	p := process("", "")
	p.Files["cgroup"].Data = []byte("0::/system.slice/cron.service\n")
	got, invalidated, err := a.Attest(patient(t), p)
	if len(got) != 0 || invalidated != nil || err != nil {
		t.Error(got, invalidated, err)
	}
}

// TestWithoutContainerSelectors: disable_container_selectors waits for no status.
func TestWithoutContainerSelectors(t *testing.T) {
	t.Parallel()
	p := onePod()
	p.Containers[0] = k8stest.Container{Name: "main-container", Image: "web", NoStatus: true}
	api := k8stest.NewAPI(t)
	api.SetPod(p)
	cfg := watching(api)
	cfg.DisableContainerSelectors = true
	a := start(t, cfg, Options{})
	got, invalidated := attestNow(t, a, uidOne, id("1"))
	if diff := cmp.Diff(without(oneSelectors(), "container-name", "container-image", "pod-image"), got); diff != "" {
		t.Errorf("before the status (-want +got):\n%s", diff)
	}
	api.SetPod(onePod())
	awaitClosed(t, invalidated)
	got, _ = attestNow(t, a, uidOne, id("1"))
	if diff := cmp.Diff(without(oneSelectors(), "container-name", "container-image"), got); diff != "" {
		t.Errorf("with the status (-want +got):\n%s", diff)
	}
	if got, _ := attestNow(t, a, uidOne, id("9")); !got.Equal(without(oneSelectors(), "container-name", "container-image")) {
		t.Errorf("a container that no status names: %v", got)
	}
	api.SetPod(twoPod())
	attestNow(t, a, uidTwo, id("2"))
	if got, _, err := a.Attest(patient(t), process(uidOne, id("2"))); err == nil {
		t.Errorf("another pod's container: %v", got)
	}
}

// TestLateStatus: selectors of the pod are given at once, and those of the
// container waited for only when an entry needs them.
func TestLateStatus(t *testing.T) {
	t.Parallel()
	early := onePod()
	early.Containers[0].ID, early.Containers[0].ImageID = "", ""
	podLevel := without(oneSelectors(), "container-name", "container-image", "pod-image")
	podLevel = with(podLevel, "pod-image:registry.test/web:1.0")

	t.Run("nobody needs it", func(t *testing.T) {
		t.Parallel()
		api := k8stest.NewAPI(t)
		api.SetPod(early)
		a := start(t, watching(api), Options{Needs: never})
		got, invalidated := attestNow(t, a, uidOne, id("1"))
		if diff := cmp.Diff(podLevel, got); diff != "" {
			t.Errorf("selectors (-want +got):\n%s", diff)
		}
		isOpen(t, invalidated)
		api.SetPod(onePod())
		awaitClosed(t, invalidated)
		if got, _ := attestNow(t, a, uidOne, id("1")); !got.Equal(oneSelectors()) {
			t.Error(cmp.Diff(oneSelectors(), got))
		}
	})
	t.Run("an entry needs it", func(t *testing.T) {
		t.Parallel()
		api := k8stest.NewAPI(t)
		api.SetPod(early)
		asked := make(chan struct{}, 100)
		a := start(t, watching(api), Options{Needs: func(known attest.Selectors, missing func(attest.Selector) bool) bool {
			if !known.Equal(podLevel) {
				t.Errorf("known (-want +got):\n%s", cmp.Diff(podLevel, known))
			}
			for value, want := range map[string]bool{"container-name:x": true, "container-image:x": true, "pod-image:x": true, "pod-init-image:x": true, "pod-label:x:y": false, "sa:x": false} {
				if missing(attest.Selector{Type: Name, Value: value}) != want {
					t.Errorf("missing(%s) is %v", value, !want)
				}
			}
			if missing(attest.Selector{Type: "unix", Value: "container-name:x"}) {
				t.Error("a selector of another attestor is missing")
			}
			asked <- struct{}{}
			return true
		}})
		type result struct {
			got attest.Selectors
			err error
		}
		done := make(chan result, 1)
		ctx := patient(t)
		go func() {
			got, _, err := a.Attest(ctx, process(uidOne, id("1")))
			done <- result{got, err}
		}()
		<-asked
		select {
		case r := <-done:
			t.Fatalf("it did not wait: %v, %v", r.got, r.err)
		default:
		}
		api.SetPod(onePod())
		r := <-done
		if diff := cmp.Diff(oneSelectors(), r.got); diff != "" || r.err != nil {
			t.Errorf("selectors (-want +got):\n%s%v", diff, r.err)
		}
	})
}

// TestStatusAtTheDeadline: what is known is better than nothing.
func TestStatusAtTheDeadline(t *testing.T) {
	t.Parallel()
	early := onePod()
	early.Containers[0].NoStatus = true
	api := k8stest.NewAPI(t)
	api.SetPod(early)
	a := start(t, watching(api), Options{})
	a.await(t, func(s contactState) bool { return s.live })
	got, invalidated, err := a.Attest(soon(t), process(uidOne, id("1")))
	if diff := cmp.Diff(without(oneSelectors(), "container-name", "container-image", "pod-image"), got); diff != "" || err != nil {
		t.Errorf("selectors (-want +got):\n%s%v", diff, err)
	}
	api.SetPod(onePod())
	awaitClosed(t, invalidated)
}

// TestRestartedContainer: another ID, of which the status does not tell yet,
// while it still tells of the old one.
func TestRestartedContainer(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	a := start(t, watching(api), Options{Needs: never})
	_, old := attestNow(t, a, uidOne, id("1"))

	// As long as the old one is said to run there is no room for another.
	if got, _, err := a.Attest(soon(t), process(uidOne, id("9"))); err == nil {
		t.Errorf("selectors %v", got)
	}
	ended := onePod()
	ended.Containers[0].Ended, ended.Containers[0].ExitCode = true, 1
	api.SetPod(ended)
	got, invalidated := attestNow(t, a, uidOne, id("9"))
	if diff := cmp.Diff(without(oneSelectors(), "container-name", "container-image"), got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
	isOpen(t, old)
	again := onePod()
	again.Containers[0].ID = id("9")
	api.SetPod(again)
	awaitClosed(t, invalidated)
	awaitClosed(t, old)
	if got, _ := attestNow(t, a, uidOne, id("9")); !got.Equal(oneSelectors()) {
		t.Error(cmp.Diff(oneSelectors(), got))
	}
}

// TestAnothersContainer: a cgroup made by hand in that of a pod, named like a
// container of another pod, gets nothing.
func TestAnothersContainer(t *testing.T) {
	t.Parallel()
	starting := twoPod()
	starting.Containers[0].ID = ""
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	api.SetPod(starting)
	a := start(t, watching(api), Options{Needs: never})
	got, _, err := a.Attest(patient(t), process(uidTwo, id("1")))
	if err == nil || len(got) != 0 {
		t.Errorf("selectors %v, error %v", got, err)
	}
	// What was said while nobody knew of the container is taken back.
	_, invalidated := attestNow(t, a, uidTwo, id("7"))
	p := onePod()
	p.Containers = append(p.Containers, k8stest.Container{Name: "late", Image: "late", ID: id("7")})
	api.SetPod(p)
	attestNow(t, a, uidOne, id("7"))
	api.SetPod(starting) // any event of the pod
	awaitClosed(t, invalidated)
	if got, _, err := a.Attest(patient(t), process(uidTwo, id("7"))); err == nil {
		t.Errorf("selectors %v", got)
	}
}

// TestPendingAnswersAreBounded: who makes cgroups in that of a pod cannot fill
// the agent's memory.
func TestPendingAnswersAreBounded(t *testing.T) {
	t.Parallel()
	starting := onePod()
	starting.Containers[0].ID = ""
	api := k8stest.NewAPI(t)
	api.SetPod(starting)
	a := start(t, watching(api), Options{Needs: never})
	_, first := attestNow(t, a, uidOne, id("1"))
	for i := range 3 * maxPending {
		attestNow(t, a, uidOne, strings.Repeat("0", 60)+string([]byte{'a', 'b', byte('a' + i/16), "0123456789abcdef"[i%16]}))
	}
	a.pods.mu.Lock()
	n := len(a.pods.byUID[uidOne].answers)
	a.pods.mu.Unlock()
	if n > maxPending+1 {
		t.Errorf("%d answers are kept", n)
	}
	awaitClosed(t, first)
}

// TestAgentsOwnPod: a container whose cgroup does not name its pod is found by
// its ID.
func TestAgentsOwnPod(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	a := start(t, watching(api), Options{})
	a.locator.view = view{relative: true}
	p := process("", "")
	p.Files["cgroup"].Data = []byte("0::/../cri-containerd-" + id("1") + ".scope\n")
	got, _, err := a.Attest(patient(t), p)
	if diff := cmp.Diff(oneSelectors(), got); diff != "" || err != nil {
		t.Errorf("selectors (-want +got):\n%s%v", diff, err)
	}
}

// TestStaticPod: its UID in the API server is another one than in its cgroup.
func TestStaticPod(t *testing.T) {
	t.Parallel()
	mirror := onePod()
	mirror.UID, mirror.Annotations = uidTwo, map[string]string{mirrorAnnotation: static}
	want := with(without(oneSelectors(), "pod-uid"), "pod-uid:"+static)
	api := k8stest.NewAPI(t)
	api.SetPod(mirror)
	a := start(t, watching(api), Options{Needs: never})
	if got, _ := attestNow(t, a, static, id("1")); !got.Equal(want) {
		t.Error(cmp.Diff(want, got))
	}
	// The annotation alone says nothing, and a pod is not found by the UID of
	// what only mirrors one.
	for _, p := range []*workloadtest.Process{process(static, id("9")), process(uidTwo, id("1"))} {
		if got, _, err := a.Attest(soon(t), p); err == nil {
			t.Errorf("selectors %v", got)
		}
	}
	// The kubelet knows it by its own UID.
	file := onePod()
	file.UID = static
	k := k8stest.NewKubelet(t, false)
	k.SetPods(file)
	if got, _ := attestNow(t, start(t, asking(k), Options{}), static, id("1")); !got.Equal(want) {
		t.Error(cmp.Diff(want, got))
	}
}

// TestMirrorOfAnotherPod: a pod that claims to mirror another's UID is not
// taken for it.
func TestMirrorOfAnotherPod(t *testing.T) {
	t.Parallel()
	liar := twoPod()
	liar.Annotations = map[string]string{mirrorAnnotation: uidOne}
	liar.Containers[0].ID = id("1")
	api := k8stest.NewAPI(t)
	api.SetPod(liar)
	a := start(t, watching(api), Options{Needs: never})
	a.await(t, func(s contactState) bool { return s.live })
	if got, _, err := a.Attest(soon(t), process(uidOne, id("1"))); err == nil {
		t.Errorf("selectors %v", got)
	}
}
