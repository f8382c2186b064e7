package kubeclient_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/kubeclient"
	"github.com/credence-id/credence/pkg/kubeclient/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(kubetest.Tests{M: m}) }

// Ways to verify tokens.
var ways = []string{"token_review", "oidc"}

// rights are what the server's role has in docs/attestors/k8s_psat.md.
var rights = map[string][]string{
	"token_review": {"create tokenreviews.authentication.k8s.io", "get pods", "get nodes"},
	"oidc":         {"get pods", "get nodes", "get serviceaccounts", "get /openid/v1/jwks"},
}

// verifier lets agents of the cluster in, with no more rights than it needs, and
// those that are named.
func verifier(t *testing.T, c *kubetest.Cluster, how string, also ...string) *k8spsat.Verifier {
	t.Helper()
	config := k8spsat.ClusterConfig{
		ServiceAccountAllowList: []string{kubetest.Namespace + ":agent"},
		AllowedNodeLabelKeys:    []string{"zone"}, AllowedPodLabelKeys: []string{"tier"},
		KubeConfigFile: c.Limited(t, append(also, rights[how]...)...), TokenVerification: how,
	}
	if how == "oidc" {
		config.Issuer = c.Issuer
	}
	v, err := k8spsat.NewVerifier(k8spsat.VerifierConfig{Clusters: map[string]k8spsat.ClusterConfig{"c": config}},
		func(c k8spsat.ClusterConfig) k8spsat.Cluster { return kubeclient.New(c.KubeConfigFile) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func show(t *testing.T, v *k8spsat.Verifier, token string) (node.Result, error) {
	t.Helper()
	payload, err := json.Marshal(map[string]string{"cluster": "c", "token": token})
	if err != nil {
		t.Fatal(err)
	}
	return v.Verify(t.Context(), node.Attempt{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Payload: payload})
}

func wantRefused(t *testing.T, what string, v *k8spsat.Verifier, token string) {
	t.Helper()
	got, err := show(t, v, token)
	if !errors.Is(err, node.ErrRefused) {
		t.Errorf("%s: agent %v, %v; want it refused", what, got.AgentID, err)
	}
	if err != nil && strings.Contains(err.Error(), token) {
		t.Errorf("%s: the error repeats the token", what)
	}
}

// TestAttest lets an agent in by the token of its pod, with the rights that the
// documentation asks for and no more.
func TestAttest(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		nodeUID := c.AddNode(t, "n1", map[string]any{"zone": "a", "secret": "b"})
		c.AddAccount(t, "agent")
		podUID := c.AddPod(t, "agent-1", "n1", "agent", map[string]any{"tier": "infra"})
		token := c.Token(t, "agent", "agent-1", podUID, "spire-server")
		var want []attest.Selector
		for _, value := range []string{
			"cluster:c", "agent_ns:spire", "agent_sa:agent", "agent_pod_name:agent-1", "agent_pod_uid:" + podUID, "agent_pod_label:tier:infra",
			"agent_node_name:n1", "agent_node_uid:" + nodeUID, "agent_node_label:zone:a",
		} {
			want = append(want, attest.Selector{Type: "k8s_psat", Value: value})
		}
		for _, how := range ways {
			got, err := show(t, verifier(t, c, how), token)
			if err != nil {
				t.Errorf("%s: %v", how, err)
				continue
			}
			if id := "spiffe://example.org/spire/agent/k8s_psat/c/" + nodeUID; got.AgentID.String() != id || !got.CanReattest {
				t.Errorf("%s: agent %v, want %s", how, got.AgentID, id)
			}
			if !got.Selectors.Equal(attest.NewSelectors(want...)) {
				t.Errorf("%s: selectors %v, want %v", how, got.Selectors, want)
			}
		}
	})
}

// TestS16_RealTokens: tokens that an API server has made are refused outside
// their place, and once what they are bound to is gone.
func TestS16_RealTokens(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		c.AddNode(t, "n1", nil)
		c.AddAccount(t, "agent")
		c.AddAccount(t, "web")
		podUID := c.AddPod(t, "agent-1", "n1", "agent", nil)
		webUID := c.AddPod(t, "web-1", "n1", "web", nil)
		good := c.Token(t, "agent", "agent-1", podUID, "spire-server")
		bad := map[string]string{
			"another audience":        c.Token(t, "agent", "agent-1", podUID, "vault"),
			"the API server's own":    c.Token(t, "agent", "agent-1", podUID),
			"another service account": c.Token(t, "web", "web-1", webUID, "spire-server"),
			"bound to no pod":         c.Token(t, "agent", "", "", "spire-server"),
			"another cluster":         otherCluster(t),
		}
		verifiers := make(map[string]*k8spsat.Verifier)
		for _, how := range ways {
			// An API server remembers for ten seconds that a token was good, also
			// when its service account is gone.
			verifiers[how] = verifier(t, c, how, "get serviceaccounts")
			for what, token := range bad {
				wantRefused(t, how+": "+what, verifiers[how], token)
			}
			if _, err := show(t, verifiers[how], good); err != nil {
				t.Fatalf("%s: the good token: %v", how, err)
			}
		}
		refusedAfter := func(what string) {
			t.Helper()
			for _, how := range ways {
				wantRefused(t, how+": "+what, verifiers[how], good)
			}
		}
		c.Delete(t, "nodes", "", "n1")
		refusedAfter("the node is deleted")
		c.AddNode(t, "n1", nil)
		refusedAfter("another node has its name")
		c.Delete(t, "pods", kubetest.Namespace, "agent-1")
		refusedAfter("the pod is deleted")
		newUID := c.AddPod(t, "agent-1", "n1", "agent", nil)
		refusedAfter("another pod has its name")
		good = c.Token(t, "agent", "agent-1", newUID, "spire-server")
		for _, how := range ways {
			if _, err := show(t, verifiers[how], good); err != nil {
				t.Errorf("%s: the new pod: %v", how, err)
			}
		}
		c.Delete(t, "serviceaccounts", kubetest.Namespace, "agent")
		c.AddAccount(t, "agent")
		refusedAfter("another service account has its name")
	})
}

// otherCluster is a token that would be good, of a cluster that is like the
// other.
func otherCluster(t *testing.T) string {
	t.Helper()
	c := kubetest.NewFake(t)
	c.AddNode(t, "n1", nil)
	c.AddAccount(t, "agent")
	return c.Token(t, "agent", "agent-1", c.AddPod(t, "agent-1", "n1", "agent", nil), "spire-server")
}

// TestRightsAreNamed: what the server may not do is an error that says so, and
// nobody's refusal.
func TestRightsAreNamed(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		api := kubeclient.New(c.Limited(t, "get nothing"))
		calls := map[string]func(context.Context) error{
			"tokenreviews":    func(ctx context.Context) error { _, err := api.Review(ctx, "x", nil); return err },
			"pods":            func(ctx context.Context) error { _, err := api.Pod(ctx, "spire", "x"); return err },
			"nodes":           func(ctx context.Context) error { _, err := api.Node(ctx, "x"); return err },
			"serviceaccounts": func(ctx context.Context) error { _, err := api.ServiceAccount(ctx, "spire", "x"); return err },
			"list":            func(ctx context.Context) error { return api.WatchNodes(ctx, nil, nil) },
			"listing pods":    func(ctx context.Context) error { return api.WatchPods(ctx, "spire", nil, nil) },
		}
		for what, call := range calls {
			if err := call(t.Context()); !errors.Is(err, k8spsat.ErrForbidden) || !strings.Contains(err.Error(), what) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		api := kubeclient.New(c.Kubeconfig)
		_, podErr := api.Pod(t.Context(), "spire", "x")
		_, nodeErr := api.Node(t.Context(), "x")
		_, accountErr := api.ServiceAccount(t.Context(), "spire", "x")
		for _, err := range []error{podErr, nodeErr, accountErr} {
			if !errors.Is(err, k8spsat.ErrNotFound) {
				t.Errorf("got %v, want not found", err)
			}
		}
	})
}

// seen is what a watch tells.
type seen struct {
	there map[string]bool
	gone  string
}

// watchNodes watches until the test ends.
func watchNodes(t *testing.T, kubeconfig string) <-chan seen {
	t.Helper()
	return watchWith(t, kubeclient.New(kubeconfig).WatchNodes)
}

func watchWith(t *testing.T, watch func(context.Context, func(map[string]bool), func(string)) error) <-chan seen {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan seen, 16), make(chan error, 1)
	go func() {
		done <- watch(ctx, func(there map[string]bool) { out <- seen{there: there} }, func(uid string) { out <- seen{gone: uid} })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("watching: %v", err)
		}
	})
	return out
}

func next(t *testing.T, from <-chan seen) seen {
	t.Helper()
	select {
	case s := <-from:
		return s
	case <-time.After(time.Minute):
		t.Fatal("the watch tells nothing")
		return seen{}
	}
}

// TestS14_NodesAreWatched: the watch tells which nodes there are, and of each
// that is deleted.
func TestS14_NodesAreWatched(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		first := c.AddNode(t, "n1", nil)
		watch := watchNodes(t, c.Limited(t, "list nodes", "watch nodes"))
		if got := next(t, watch); len(got.there) != 1 || !got.there[first] {
			t.Errorf("nodes %v, want %s", got.there, first)
		}
		second := c.AddNode(t, "n2", nil)
		c.Delete(t, "nodes", "", "n1")
		c.Delete(t, "nodes", "", "n2")
		for _, want := range []string{first, second} {
			if got := next(t, watch); got.gone != want {
				t.Errorf("gone %v, want %s", got, want)
			}
		}
	})
}

// TestS14_PodsAreWatched: the same for the pods of a namespace.
func TestS14_PodsAreWatched(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		c.AddNode(t, "n1", nil)
		c.AddAccount(t, "agent")
		pod := c.AddPod(t, "agent-1", "n1", "agent", nil)
		api := kubeclient.New(c.Limited(t, "list pods", "watch pods"))
		watch := watchWith(t, func(ctx context.Context, there func(map[string]bool), gone func(string)) error {
			return api.WatchPods(ctx, kubetest.Namespace, there, gone)
		})
		if got := next(t, watch); len(got.there) != 1 || !got.there[pod] {
			t.Errorf("pods %v, want %s", got.there, pod)
		}
		c.Delete(t, "pods", kubetest.Namespace, "agent-1")
		if got := next(t, watch); got.gone != pod {
			t.Errorf("gone %v, want %s", got, pod)
		}
	})
}

// TestWatchIsTakenUp: a watch that ends is taken up where it was, or, when that
// is forgotten, tells all anew.
func TestWatchIsTakenUp(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	first, second, third := f.AddNode(t, "n1", nil), f.AddNode(t, "n2", nil), f.AddNode(t, "n3", nil)
	watch := watchNodes(t, f.Kubeconfig)
	next(t, watch)
	f.Delete(t, "nodes", "", "n3")
	if got := next(t, watch); got.gone != third { // the watch is open
		t.Errorf("at first: %v, want %s gone", got, third)
	}
	f.Break()
	f.Delete(t, "nodes", "", "n1")
	if got := next(t, watch); got.gone != first {
		t.Errorf("after a pause: %v, want %s gone", got, first)
	}
	f.Forget()
	if got := next(t, watch); len(got.there) != 1 || !got.there[second] {
		t.Errorf("after the past is forgotten: %v, want %s there", got, second)
	}
}

// TestKubeconfigIsFollowed: a file that is replaced is read again.
func TestKubeconfigIsFollowed(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	path := f.Limited(t, "get nothing")
	api := kubeclient.New(path)
	if _, err := api.Node(t.Context(), "x"); !errors.Is(err, k8spsat.ErrForbidden) {
		t.Errorf("before: %v", err)
	}
	text, err := os.ReadFile(f.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, "\n# new\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Node(t.Context(), "x"); !errors.Is(err, k8spsat.ErrNotFound) {
		t.Errorf("after: %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	broken := f.Limited(t, "get x")
	if err := os.WriteFile(broken, []byte("kind: [canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := kubeclient.Check(""); err != nil {
		t.Errorf("none: %v", err)
	}
	if err := kubeclient.Check(f.Kubeconfig); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for _, path := range []string{broken, broken + "-not-there"} {
		if err := kubeclient.Check(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestOutsideACluster: without a file, and without a pod's service account.
func TestOutsideACluster(t *testing.T) {
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		t.Skip("this is inside a cluster")
	}
	t.Parallel()
	if _, err := kubeclient.New("").Node(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "name a kubeconfig file") {
		t.Errorf("got %v", err)
	}
}
