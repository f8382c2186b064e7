package k8spsat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/retry"
)

// memory are agents that a server remembers.
type memory struct {
	mu sync.Mutex
	// The rest is guarded by mu.
	known   []node.Known
	removed []string
	failing error
}

func (m *memory) With(_ context.Context, selectors attest.Selectors) ([]node.Known, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []node.Known
	for _, k := range m.known {
		if k.Selectors.Contains(selectors) {
			out = append(out, k)
		}
	}
	return out, m.failing
}

func (m *memory) Remove(_ context.Context, id spiffeid.ID, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = slices.DeleteFunc(m.known, func(k node.Known) bool { return k.ID == id })
	m.removed = append(m.removed, lastPart(id)+": "+reason)
	return nil
}

func (m *memory) add(cluster, name, nodeName, nodeUID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = append(m.known, node.Known{
		ID:        spiffeid.RequireFromSegments(td, "spire", "agent", Name, cluster, name),
		Selectors: selectorsOf("cluster:"+cluster, "agent_node_name:"+nodeName, "agent_node_uid:"+nodeUID, "agent_node_name"),
	})
}

// take returns what was removed since the last call.
func (m *memory) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.removed
	m.removed = nil
	slices.Sort(out)
	return out
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failing = err
}

// addPod adds an agent that is named for its pod, on the node n1.
func (m *memory) addPod(name, namespace, podName, podUID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = append(m.known, node.Known{
		ID: spiffeid.RequireFromSegments(td, "spire", "agent", Name, "production", "pod", name),
		Selectors: selectorsOf("cluster:production", "agent_ns:"+namespace, "agent_pod_name:"+podName, "agent_pod_uid:"+podUID,
			"agent_node_name:n1", "agent_node_uid:node-uid-1"),
	})
}

// watched runs a test while nodes are watched.
func watched(t *testing.T, test func(t *testing.T, s *stage, m *memory, log *strings.Builder)) {
	t.Helper()
	watchedAs(t, nil, test)
}

// watchedAs is watched with another configuration of the cluster.
func watchedAs(t *testing.T, change func(*ClusterConfig), test func(t *testing.T, s *stage, m *memory, log *strings.Builder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, m, log := newStage(t), &memory{}, &strings.Builder{}
		s.podWatches = map[string]chan steps{"spire": make(chan steps), "other": make(chan steps)}
		v, err := NewVerifier(config(byReview, change), func(ClusterConfig) Cluster { return s }, slog.New(slog.NewTextHandler(log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var running sync.WaitGroup
		running.Go(func() { done <- v.Watch(ctx, m) })
		test(t, s, m, log)
		cancel()
		running.Wait()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
	})
}

// steps is the watch that runs now.
type steps chan func(func(map[string]bool), func(string)) error

func (s *stage) watch() steps { return <-s.watches }

func (s *stage) watchPods(namespace string) steps { return <-s.podWatches[namespace] }

// list tells which nodes there are.
func (w steps) list(uids ...string) {
	there := make(map[string]bool)
	for _, uid := range uids {
		there[uid] = true
	}
	w <- func(tell func(map[string]bool), _ func(string)) error { tell(there); return nil }
	synctest.Wait()
}

func (w steps) gone(uid string) {
	w <- func(_ func(map[string]bool), tell func(string)) error { tell(uid); return nil }
	synctest.Wait()
}

func (w steps) end(err error) {
	w <- func(func(map[string]bool), func(string)) error { return err }
	synctest.Wait()
}

func wantRemoved(t *testing.T, m *memory, want ...string) {
	t.Helper()
	wantGone(t, m, "node", want...)
}

// wantGone wants agents to have been removed since the last call, for homes that
// are gone: "agent of UID" each.
func wantGone(t *testing.T, m *memory, noun string, want ...string) {
	t.Helper()
	for i, uid := range want {
		_, uid, _ = strings.Cut(uid, " of ")
		name, _, _ := strings.Cut(want[i], " of ")
		want[i] = fmt.Sprintf("%s: its %s %s is gone from cluster production", name, noun, uid)
	}
	if diff := cmp.Diff(want, m.take()); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
}

// TestS14_NodeGoneAgentGone: an agent goes with its node, also when the node went
// while nobody watched; agents of other nodes and clusters stay.
func TestS14_NodeGoneAgentGone(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, s *stage, m *memory, _ *strings.Builder) {
		m.add("production", "a1", "n1", "node-uid-1")
		m.add("production", "a0", "n0", "node-uid-0") // went before
		m.add("production", "a2", "n1", "node-uid-2") // its node's name is another's now
		m.add("staging", "a3", "n0", "node-uid-0")
		w := s.watch()
		w.list("node-uid-1")
		wantRemoved(t, m, "a0 of node-uid-0", "a2 of node-uid-2")
		w.gone("node-uid-9")
		wantRemoved(t, m)
		s.change(func() { delete(s.nodes, "n1") })
		w.gone("node-uid-1")
		wantRemoved(t, m, "a1 of node-uid-1")
	})
}

// TestS14_PodGoneAgentGone: an agent that is named for its pod goes with it, also
// when the pod went while nobody watched, and with its node as any other.
func TestS14_PodGoneAgentGone(t *testing.T) {
	t.Parallel()
	byPod := func(c *ClusterConfig) {
		c.UsePodUIDForAgentID = true
		c.ServiceAccountAllowList = []string{"spire:agent", "spire:second", "other:agent"}
	}
	watchedAs(t, byPod, func(t *testing.T, s *stage, m *memory, _ *strings.Builder) {
		m.addPod("p0", "spire", "agent-0", "pod-uid-0") // went before
		m.addPod("p1", "spire", "agent-1", "pod-uid-1")
		m.addPod("p2", "spire", "agent-1", "pod-uid-2") // its name is another's now
		m.addPod("p3", "other", "agent-1", "pod-uid-3")
		nodes, pods, others := s.watch(), s.watchPods("spire"), s.watchPods("other")
		nodes.list("node-uid-1")
		wantRemoved(t, m)
		pods.list("pod-uid-1", "pod-uid-of-a-stranger")
		wantGone(t, m, "pod", "p0 of pod-uid-0", "p2 of pod-uid-2")
		s.change(func() { s.pods["other/agent-1"] = Pod{UID: "pod-uid-3"} })
		others.list("pod-uid-3")
		wantRemoved(t, m)
		pods.gone("pod-uid-1") // which is still there, by name
		wantRemoved(t, m)
		s.change(func() { delete(s.pods, "spire/agent-1") })
		pods.gone("pod-uid-1")
		wantGone(t, m, "pod", "p1 of pod-uid-1")
		s.change(func() { delete(s.nodes, "n1") })
		nodes.gone("node-uid-1")
		wantRemoved(t, m, "p3 of node-uid-1")
	})
	// Where agents are named for their nodes, they outlive their pods.
	watched(t, func(t *testing.T, s *stage, m *memory, _ *strings.Builder) {
		s.watch().list("node-uid-1")
		m.addPod("p0", "spire", "agent-0", "pod-uid-0")
		select {
		case <-s.podWatches["spire"]:
			t.Error("pods are watched")
		case <-time.After(time.Hour):
		}
		wantRemoved(t, m)
	})
}

// TestAgentsFromBeforePodNames: where use_pod_uid_for_agent_id was switched on,
// agents that are still named for their nodes outlive the pods that they attested
// from, as before, and go with their nodes.
func TestAgentsFromBeforePodNames(t *testing.T) {
	t.Parallel()
	watchedAs(t, func(c *ClusterConfig) { c.UsePodUIDForAgentID = true }, func(t *testing.T, s *stage, m *memory, _ *strings.Builder) {
		m.addPod("p1", "spire", "agent-1", "pod-uid-1")
		m.addPod("p2", "spire", "agent-0", "pod-uid-0")
		m.known[1].ID = spiffeid.RequireFromSegments(td, "spire", "agent", Name, "production", "node-uid-1")
		nodes, pods := s.watch(), s.watchPods("spire")
		nodes.list("node-uid-1")
		pods.list("pod-uid-1")
		pods.gone("pod-uid-0")
		wantRemoved(t, m)
		s.change(func() { delete(s.nodes, "n1") })
		nodes.gone("node-uid-1")
		wantRemoved(t, m, "node-uid-1 of node-uid-1", "p1 of node-uid-1")
	})
}

// TestS14_AttestedMeanwhile: an agent that attested while its node went is found
// once its attestation must have ended.
func TestS14_AttestedMeanwhile(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, s *stage, m *memory, _ *strings.Builder) {
		w := s.watch()
		w.list("node-uid-1")
		s.change(func() { delete(s.nodes, "n1") })
		w.gone("node-uid-1")
		m.add("production", "late", "n1", "node-uid-1")
		time.Sleep(lookAgain + time.Second)
		synctest.Wait()
		wantRemoved(t, m, "late of node-uid-1")
		// Then the node is forgotten.
		m.add("production", "later", "n1", "node-uid-1")
		time.Sleep(time.Hour)
		synctest.Wait()
		wantRemoved(t, m)
	})
}

// TestNodeThatIsThere: an agent stays whose node the API server still has,
// whatever the watch says; and while it cannot be asked.
func TestNodeThatIsThere(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, s *stage, m *memory, log *strings.Builder) {
		m.add("production", "a1", "n1", "node-uid-1")
		m.add("production", "a2", "n2", "node-uid-2")
		s.change(func() { s.nodes["n2"] = Node{UID: "node-uid-2"} })
		w := s.watch()
		w.list("node-uid-2") // n1 was made after the list
		w.gone("node-uid-1")
		wantRemoved(t, m)
		s.change(func() { s.failing["node"] = errors.New("no route"); delete(s.nodes, "n1") })
		w.gone("node-uid-1")
		wantRemoved(t, m)
		if !strings.Contains(log.String(), "no route") {
			t.Errorf("the log does not say why: %s", log)
		}
		s.change(func() { delete(s.failing, "node") })
		time.Sleep(lookLater + time.Second)
		synctest.Wait()
		wantRemoved(t, m, "a1 of node-uid-1")
	})
}

// TestAgentsUnknown: what the server cannot know now it looks at later.
func TestAgentsUnknown(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, s *stage, m *memory, _ *strings.Builder) {
		m.add("production", "a0", "n0", "node-uid-0")
		m.add("production", "a1", "n1", "node-uid-1")
		m.fail(errors.New("cut off"))
		w := s.watch()
		w.list("node-uid-1")
		wantRemoved(t, m)
		m.fail(nil)
		time.Sleep(lookLater + time.Second)
		synctest.Wait()
		wantRemoved(t, m, "a0 of node-uid-0")
	})
}

// TestWatchBreaks: it is begun again, and what happened meanwhile is seen.
func TestWatchBreaks(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, s *stage, m *memory, log *strings.Builder) {
		m.add("production", "a1", "n1", "node-uid-1")
		m.add("production", "a2", "n2", "node-uid-2")
		w := s.watch()
		w.list("node-uid-1", "node-uid-2")
		s.change(func() { delete(s.nodes, "n1") })
		w.end(io.ErrUnexpectedEOF)
		begin := time.Now()
		w = s.watch()
		if d := time.Since(begin); d < retry.Least*3/4 || d > 2*retry.Least {
			t.Errorf("watched again after %v", d)
		}
		w.list("node-uid-2")
		wantRemoved(t, m, "a1 of node-uid-1")
		if !strings.Contains(log.String(), "unexpected EOF") {
			t.Errorf("the log does not say why: %s", log)
		}
	})
}

// TestAnotherCluster: a kubeconfig of another cluster, whose nodes are all others,
// costs no agent its place.
func TestAnotherCluster(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, s *stage, m *memory, log *strings.Builder) {
		m.add("production", "a1", "n1", "node-uid-1")
		m.add("production", "a2", "n2", "node-uid-2")
		s.change(func() { s.nodes = map[string]Node{"n1": {UID: "other-uid-1"}} })
		w := s.watch()
		w.list("other-uid-1")
		time.Sleep(time.Hour)
		synctest.Wait()
		wantRemoved(t, m)
		if n := strings.Count(log.String(), "is it the cluster"); n != 1 {
			t.Errorf("the log says so %d times:\n%s", n, log)
		}
		w.list()
		wantRemoved(t, m)
	})
}

// TestWatchForbidden: a server that may not watch says so once, and goes on; it
// watches as soon as it is let, as an API server that has just started refuses
// for a moment what it allows.
func TestWatchForbidden(t *testing.T) {
	t.Parallel()
	watched(t, func(t *testing.T, s *stage, m *memory, log *strings.Builder) {
		m.add("production", "a0", "n0", "node-uid-0")
		m.add("production", "a1", "n1", "node-uid-1")
		s.watch().end(fmt.Errorf("cannot list nodes: %w", ErrForbidden))
		time.Sleep(time.Hour)
		synctest.Wait()
		wantRemoved(t, m)
		if n := strings.Count(log.String(), "level="); n != 1 || !strings.Contains(log.String(), "cannot list nodes") {
			t.Errorf("%d lines in the log: %s", n, log)
		}
		for range 20 {
			s.watch().end(fmt.Errorf("cannot list nodes: %w", ErrForbidden))
		}
		if n := strings.Count(log.String(), "not allowed"); n > 2 {
			t.Errorf("it is said %d times", n)
		}
		begin := time.Now()
		s.watch().list("node-uid-1")
		if took := time.Since(begin); took > 2*retry.Most {
			t.Errorf("tried again after %v", took)
		}
		wantRemoved(t, m, "a0 of node-uid-0")
	})
}
