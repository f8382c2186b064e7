package k8s

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload/k8stest"
	"github.com/credence-id/credence/pkg/attest/workload/workloadtest"
)

const (
	node   = "node-of-the-agent"
	uidOne = "6d1c1f6e-7a52-4b58-8d53-4c5b7f2a9c10"
	uidTwo = "0c6f1f5a-3c0e-4d0b-9d62-0a1de5f0a9e1"
	static = "3b1cb5a17f1f1d1c4cf5c7d4f9bd7b58"
	// patience is for what happens at once when nothing is wrong.
	patience = 20 * time.Second
)

// id is a container ID.
func id(digit string) string { return strings.Repeat(digit, 64) }

// onePod and twoPod have one container each, which runs.
func onePod() k8stest.Pod {
	return k8stest.Pod{
		Name: "web-5f6b", Namespace: "shop-front", UID: uidOne, Node: node, ServiceAccount: "web-account",
		Labels: map[string]string{"app": "webserver", "tier": ""},
		Owners: []k8stest.Owner{{Kind: "ReplicaSet", Name: "web-5f6b-replicas", UID: "owner-uid-1"}},
		Containers: []k8stest.Container{{
			Name: "main-container", Image: "registry.test/web:1.0", ID: id("1"), ImageID: "registry.test/web@sha256:" + id("a"),
		}},
	}
}

func oneSelectors() attest.Selectors {
	return set("ns:shop-front", "sa:web-account", "node-name:"+node, "pod-uid:"+uidOne, "pod-name:web-5f6b",
		"pod-image-count:1", "pod-init-image-count:0", "pod-label:app:webserver", "pod-label:tier:",
		"pod-owner:ReplicaSet:web-5f6b-replicas", "pod-owner-uid:ReplicaSet:owner-uid-1",
		"pod-image:registry.test/web:1.0", "pod-image:registry.test/web@sha256:"+id("a"),
		"container-name:main-container",
		"container-image:registry.test/web:1.0", "container-image:registry.test/web@sha256:"+id("a"))
}

func twoPod() k8stest.Pod {
	return k8stest.Pod{
		Name: "db-0", Namespace: "shop-back", UID: uidTwo, Node: node, ServiceAccount: "db-account",
		Containers: []k8stest.Container{{Name: "database", Image: "db:2", ID: id("2"), ImageID: "db@sha256:" + id("b")}},
	}
}

func twoSelectors() attest.Selectors {
	return set("ns:shop-back", "sa:db-account", "node-name:"+node, "pod-uid:"+uidTwo, "pod-name:db-0",
		"pod-image-count:1", "pod-init-image-count:0", "pod-image:db:2", "pod-image:db@sha256:"+id("b"),
		"container-name:database", "container-image:db:2", "container-image:db@sha256:"+id("b"))
}

func set(values ...string) attest.Selectors {
	var out []attest.Selector
	for _, v := range values {
		out = append(out, attest.Selector{Type: Name, Value: v})
	}
	return attest.NewSelectors(out...)
}

// with and without change a set.
func with(s attest.Selectors, values ...string) attest.Selectors {
	return attest.NewSelectors(append(set(values...), s...)...)
}

func without(s attest.Selectors, kinds ...string) attest.Selectors {
	var out []attest.Selector
	for _, one := range s {
		keep := true
		for _, kind := range kinds {
			keep = keep && !strings.HasPrefix(one.Value, kind+":")
		}
		if keep {
			out = append(out, one)
		}
	}
	return attest.NewSelectors(out...)
}

// process is one that runs in a container.
func process(uid, container string) *workloadtest.Process {
	return &workloadtest.Process{ID: 42, Files: fstest.MapFS{
		"cgroup": {Data: []byte("0::/kubepods/burstable/pod" + uid + "/" + container + "\n")},
	}}
}

// logs collects what is logged.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// watching is the configuration of a watch on the API server.
func watching(api *k8stest.API) Config {
	return Config{
		PodSource: sourceAPIServer, NodeName: node,
		APIServerURL: api.URL(), APIServerCAPath: api.CAPath, APIServerTokenPath: api.TokenPath,
	}
}

// never needs what is not known.
func never(attest.Selectors, func(attest.Selector) bool) bool { return false }

// start runs an attestor until the test ends.
func start(t testing.TB, cfg Config, o Options) *Attestor {
	t.Helper()
	a, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	a.locator.view = view{roots: []root{{}}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return a
}

// patient is a context for what has to happen.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// soon is a context for what does not.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func attestNow(t testing.TB, a *Attestor, uid, container string) (attest.Selectors, <-chan struct{}) {
	t.Helper()
	got, invalidated, err := a.Attest(patient(t), process(uid, container))
	if err != nil {
		t.Fatal(err)
	}
	return got, invalidated
}

func awaitClosed(t testing.TB, ch <-chan struct{}) {
	t.Helper()
	if ch == nil {
		t.Fatal("the answer cannot be invalidated")
	}
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatal("not invalidated")
	}
}

func isOpen(t testing.TB, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
		t.Error("invalidated")
	default:
	}
}

// text is a logger that writes to l.
func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// await returns when the contact with the API server is such.
func (a *Attestor) await(t testing.TB, such func(contactState) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		news := a.pods.look(place{}).news
		if such(a.watch.state()) {
			return
		}
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("the contact with the API server is %+v", a.watch.state())
		}
	}
}
