package k8s

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload/k8stest"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// TestChanges: an answer is invalidated by what changes it, and by nothing else.
func TestChanges(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.Dribble()
	api.SetPod(onePod())
	api.SetPod(twoPod())
	a := start(t, watching(api), Options{})
	_, one := attestNow(t, a, uidOne, id("1"))
	_, two := attestNow(t, a, uidTwo, id("2"))

	same := onePod()
	same.Annotations = map[string]string{"note": "of no interest"}
	same.Containers[0].RestartPolicy = "Never"
	api.SetPod(same)
	marker := twoPod()
	marker.Labels = map[string]string{"marker": "1"}
	api.SetPod(marker)
	awaitClosed(t, two) // so what was before it has been seen
	isOpen(t, one)

	labelled := onePod()
	labelled.Labels["tier"] = "front"
	api.SetPod(labelled)
	awaitClosed(t, one)
	want := with(without(oneSelectors(), "pod-label"), "pod-label:app:webserver", "pod-label:tier:front")
	got, one := attestNow(t, a, uidOne, id("1"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("another label (-want +got):\n%s", diff)
	}

	api.DeletePod(uidOne)
	awaitClosed(t, one)
	if got, _, err := a.Attest(patient(t), process(uidOne, id("1"))); err == nil || !strings.Contains(err.Error(), "was deleted") {
		t.Errorf("deleted: %v, %v", got, err)
	}
}

// TestWaitsForThePod: a container can be quicker than the watch.
func TestWaitsForThePod(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	a := start(t, watching(api), Options{})
	a.await(t, func(s contactState) bool { return s.live })
	var wg sync.WaitGroup
	ctx := patient(t)
	for range 20 {
		wg.Go(func() {
			got, _, err := a.Attest(ctx, process(uidOne, id("1")))
			if !got.Equal(oneSelectors()) {
				t.Errorf("selectors %v, error %v", got, err)
			}
		})
	}
	api.SetPod(twoPod())
	api.SetPod(onePod())
	wg.Wait()
	if n := api.Count("list pods"); n != 1 {
		t.Errorf("%d lists", n)
	}
}

// TestPodsOfOtherNodes are neither asked for nor believed.
func TestPodsOfOtherNodes(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	other := twoPod()
	other.Node = "another-node"
	api.SetPod(other)
	api.SetPod(onePod())
	a := start(t, watching(api), Options{})
	attestNow(t, a, uidOne, id("1"))
	stray := map[string]any{"metadata": map[string]any{"uid": uidTwo, "name": "stray", "resourceVersion": "1"}, "spec": map[string]any{"nodeName": "another-node"}}
	api.Send("ADDED", stray)
	if got, _, err := a.Attest(soon(t), process(uidTwo, id("2"))); err == nil || !strings.Contains(err.Error(), "is on another node") {
		t.Errorf("selectors %v, error %v", got, err)
	}
}

// TestWatchEnds: what happens between two watches is not missed, and no list is
// made for it; a bookmark keeps a quiet watch able to go on.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	a := start(t, watching(api), Options{})
	for i := range 5 {
		_, one := attestNow(t, a, uidOne, id("1"))
		api.CutWatches()
		p := onePod()
		p.Labels["round"] = fmt.Sprint(i)
		api.SetPod(p)
		awaitClosed(t, one)
	}
	other := twoPod()
	other.Node = "another-node"
	api.SetPod(other) // moves the revision on, and is not sent to us
	_, one := attestNow(t, a, uidOne, id("1"))
	p := onePod()
	p.Labels["round"] = "before the bookmark"
	api.SetPod(p)
	api.Bookmark()
	awaitClosed(t, one)
	_, one = attestNow(t, a, uidOne, id("1"))
	p.Labels["round"] = "after it" // so the bookmark has been seen
	api.SetPod(p)
	awaitClosed(t, one)
	if n := api.Count("list pods"); n != 1 {
		t.Errorf("%d lists", n)
	}
}

// TestListsAgain when the API server cannot go on from where a watch was: pods
// that were deleted meanwhile are gone, the others stay.
func TestListsAgain(t *testing.T) {
	t.Parallel()
	for name, asHTTP := range map[string]bool{"410 as an event": false, "410 as a status": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := k8stest.NewAPI(t)
			api.SetPod(onePod())
			api.SetPod(twoPod())
			a := start(t, watching(api), Options{})
			_, one := attestNow(t, a, uidOne, id("1"))
			_, two := attestNow(t, a, uidTwo, id("2"))
			api.SetDown(true)
			api.DeletePod(uidOne)
			api.Compact(asHTTP)
			api.SetDown(false)
			awaitClosed(t, one)
			isOpen(t, two)
			if _, _, err := a.Attest(patient(t), process(uidOne, id("1"))); err == nil || !strings.Contains(err.Error(), "was deleted") {
				t.Error(err)
			}
			if n := api.Count("list pods"); n < 2 {
				t.Errorf("%d lists", n)
			}
		})
	}
}

// TestNonsenseIsListedAgain: an event that cannot be understood is no reason to
// miss what it said.
func TestNonsenseIsListedAgain(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]func(*k8stest.API){
		"a kind that is none": func(api *k8stest.API) { api.Send("NONSENSE", map[string]any{}) },
		"another type":        func(api *k8stest.API) { api.Send("MODIFIED", map[string]any{"metadata": 1}) },
		"an error":            func(api *k8stest.API) { api.Send("ERROR", map[string]any{"code": 500, "message": "internal"}) },
		"an error of no type": func(api *k8stest.API) { api.Send("ERROR", map[string]any{"code": "x"}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := k8stest.NewAPI(t)
			api.SetPod(onePod())
			a := start(t, watching(api), Options{})
			_, one := attestNow(t, a, uidOne, id("1"))
			send(api)
			p := onePod()
			p.Labels["app"] = "other"
			api.SetPod(p)
			awaitClosed(t, one)
		})
	}
}

// TestAPIServerAway: what is known is used, what is not is refused with the
// reason, and all is well when it is back.
func TestAPIServerAway(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	var log logs
	registry := prometheus.NewPedanticRegistry()
	a := start(t, watching(api), Options{Log: log.logger(), Metrics: registry})
	_, one := attestNow(t, a, uidOne, id("1"))
	api.SetDown(true)
	api.SetPod(twoPod())
	a.await(t, func(s contactState) bool { return !s.live })
	if got, _ := attestNow(t, a, uidOne, id("1")); !got.Equal(oneSelectors()) {
		t.Error(cmp.Diff(oneSelectors(), got))
	}
	isOpen(t, one)
	_, _, err := a.Attest(soon(t), process(uidTwo, id("2")))
	if err == nil || !strings.Contains(err.Error(), "pods have not been followed for") {
		t.Errorf("a pod that is not known: %v", err)
	}
	shown := false
	families, err := registry.Gather()
	for _, f := range families {
		shown = shown || f.GetName() == "credence_k8s_api_server_away_seconds" && f.GetMetric()[0].GetGauge().GetValue() > 0
	}
	if err != nil || !shown {
		t.Errorf("no metric says for how long: %v", err)
	}
	if a.watch.age(a.watch.state().lostAt.Add(1)) <= 0 {
		t.Error("it is not older than when it was lost")
	}
	api.SetDown(false)
	attestNow(t, a, uidTwo, id("2"))
	for _, want := range []string{"what is known from it is used", "away_for=", "following the API server again"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

// TestTokenRotation: another token is used once there is one.
func TestTokenRotation(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	a := start(t, watching(api), Options{})
	attestNow(t, a, uidOne, id("1"))
	for i := range 3 {
		api.RotateToken()
		api.CutWatches()
		p := twoPod()
		p.UID = fmt.Sprintf("%08d-1111-4222-8333-944444444444", i)
		api.SetPod(p)
		_, two := attestNow(t, a, p.UID, id("2"))
		api.DeletePod(p.UID)
		awaitClosed(t, two)
	}
	if api.Count("unauthorized") == 0 {
		t.Error("the old token was never refused")
	}
}

// TestNotAllowed: with nobody else to ask, the reason is what the API server
// says, and rights that are given later are used.
func TestNotAllowed(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	api.Deny("pods", http.StatusForbidden)
	a := start(t, watching(api), Options{})
	a.await(t, func(s contactState) bool { return s.err != nil })
	_, _, err := a.Attest(soon(t), process(uidOne, id("1")))
	if err == nil || !strings.Contains(err.Error(), `cannot list resource "pods"`) {
		t.Errorf("not allowed: %v", err)
	}
	api.Deny("pods", 0)
	attestNow(t, a, uidOne, id("1"))
}

// TestNamespaceLabels are watched too.
func TestNamespaceLabels(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetNamespace("shop-front", map[string]string{"team": "shop"})
	api.SetPod(onePod())
	api.SetPod(twoPod())
	cfg := watching(api)
	cfg.EnableNamespaceLabels = true
	a := start(t, cfg, Options{})
	got, one := attestNow(t, a, uidOne, id("1"))
	if diff := cmp.Diff(with(oneSelectors(), "ns-label:team:shop"), got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
	if _, _, err := a.Attest(soon(t), process(uidTwo, id("2"))); err == nil || !strings.Contains(err.Error(), "labels of its namespace") {
		t.Errorf("a namespace that is not known: %v", err)
	}
	api.SetNamespace("shop-back", nil)
	if got, _ := attestNow(t, a, uidTwo, id("2")); !got.Equal(twoSelectors()) {
		t.Error(cmp.Diff(twoSelectors(), got))
	}
	isOpen(t, one)
	api.SetNamespace("shop-front", map[string]string{"team": "other"})
	awaitClosed(t, one)
	got, one = attestNow(t, a, uidOne, id("1"))
	if diff := cmp.Diff(with(oneSelectors(), "ns-label:team:other"), got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
	api.DeleteNamespace("shop-front")
	awaitClosed(t, one)
	if n := api.Count("list namespaces"); n != 1 {
		t.Errorf("%d lists", n)
	}
}

// TestLabelsFlipWhileAttesting: each answer is one or the other, and no stream
// is left with the wrong one.
func TestLabelsFlipWhileAttesting(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	a := start(t, watching(api), Options{})
	attestNow(t, a, uidOne, id("1"))
	variant := func(v string) attest.Selectors {
		return with(without(oneSelectors(), "pod-label"), "pod-label:app:"+v, "pod-label:tier:")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var streams sync.WaitGroup
	for range 8 {
		streams.Go(func() { // as a stream of the Workload API does
			for {
				got, invalidated, err := a.Attest(ctx, process(uidOne, id("1")))
				switch {
				case err != nil:
					t.Errorf("attest: %v", err)
					return
				case got.Equal(variant("last")):
					return
				case !got.Equal(variant("a")) && !got.Equal(variant("b")) && !got.Equal(oneSelectors()):
					t.Errorf("selectors %v", got)
				}
				select {
				case <-invalidated:
				case <-ctx.Done():
					t.Error("a stream is left with an old answer")
					return
				}
			}
		})
	}
	for i := range 100 {
		p := onePod()
		p.Labels["app"] = []string{"a", "b"}[i%2]
		api.SetPod(p)
		if i%10 == 0 {
			api.CutWatches()
		}
	}
	p := onePod()
	p.Labels["app"] = "last"
	api.SetPod(p)
	streams.Wait()
}

// TestS05_NothingOfThePodIsLogged: not its labels, its images nor its names.
func TestS05_NothingOfThePodIsLogged(t *testing.T) {
	t.Parallel()
	const canary = "canary-5f1c"
	api := k8stest.NewAPI(t)
	p := onePod()
	p.Labels = map[string]string{"secret": canary, canary: "x"}
	p.Annotations = map[string]string{"a": canary}
	p.Containers[0].Image = canary
	api.SetPod(p)
	var log logs
	cfg := watching(api)
	cfg.VerboseContainerLocatorLogs = true
	a := start(t, cfg, Options{Log: log.logger()})
	attestNow(t, a, uidOne, id("1"))
	api.Send("MODIFIED", map[string]any{"metadata": map[string]any{"labels": canary}})
	api.Send("NONSENSE", map[string]any{"metadata": canary})
	huge := onePod()
	huge.UID, huge.Labels = uidTwo, map[string]string{}
	huge.Containers[0].ID = id("2")
	for i := range attest.MaxSelectors + 1 {
		huge.Labels[fmt.Sprintf("%s-%d", canary, i)] = canary
	}
	api.SetPod(huge)
	_, _, err := a.Attest(patient(t), process(uidTwo, id("2")))
	if err == nil || !strings.Contains(err.Error(), "no selector can hold") {
		t.Errorf("too many labels: %v", err)
	}
	for what, text := range map[string]string{"log": log.String(), "error": fmt.Sprint(err)} {
		if strings.Contains(text, canary) {
			t.Errorf("the %s has the canary:\n%s", what, text)
		}
		if strings.Contains(text, "token-1") {
			t.Errorf("the %s has the token:\n%s", what, text)
		}
	}
}

// FuzzPod: whatever the API server says of a pod, the selectors are of our type
// and valid, or there are none.
func FuzzPod(f *testing.F) {
	f.Add([]byte(`{"metadata":{"uid":"u","labels":{"a":"b"}},"spec":{"containers":[{"name":"c"}]},"status":{"containerStatuses":[{"name":"c","containerID":"containerd://x","state":{"running":{}}}]}}`), "x")
	f.Add([]byte(`{"status":{"containerStatuses":[{"containerID":"://"}]}}`), "")
	f.Fuzz(func(t *testing.T, text []byte, container string) {
		s := newPods(false, false)
		w := &watcher[podObject]{metrics: newMetrics(), resource: resource[podObject]{
			meta:   func(o *podObject) *metaObject { return &o.Metadata },
			set:    func(o *podObject) { s.set(newPod(o)) },
			remove: func(o *podObject) { s.remove(o.Metadata.UID) },
		}}
		if err := w.apply("ADDED", text); err != nil {
			return
		}
		for uid := range s.byUID {
			seen := s.look(place{pod: uid, container: container})
			if err := seen.answer.selectors.Validate(); err != nil {
				t.Error(err)
			}
			for _, one := range seen.answer.selectors {
				if one.Type != Name {
					t.Errorf("selector %v", one)
				}
			}
		}
		if err := w.apply("DELETED", text); err != nil || len(s.byUID) != 0 {
			t.Errorf("%d pods are left, %v", len(s.byUID), err)
		}
	})
}

func BenchmarkAttest(b *testing.B) {
	api := k8stest.NewAPI(b)
	api.SetPod(onePod())
	for i := range 200 {
		p := twoPod()
		p.UID = fmt.Sprintf("%08d-1111-4222-8333-944444444444", i)
		api.SetPod(p)
	}
	a := start(b, watching(api), Options{})
	p := process(uidOne, id("1"))
	attestNow(b, a, uidOne, id("1"))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := a.Attest(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}
