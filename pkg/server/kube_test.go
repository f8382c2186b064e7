package server

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/credence-id/credence/pkg/kubeclient/kubetest"
	"github.com/credence-id/credence/pkg/registry"
)

// agentPod makes a node with an agent's pod, and returns what the agent shows.
func agentPod(t *testing.T, c *kubetest.Cluster, name string) []byte {
	t.Helper()
	c.AddNode(t, "node-"+name, nil)
	uid := c.AddPod(t, "agent-"+name, "node-"+name, "agent", nil)
	payload, err := json.Marshal(map[string]string{"cluster": "c", "token": c.Token(t, "agent", "agent-"+name, uid, "spire-server")})
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

func psatSection(kubeconfig string) string {
	return fmt.Sprintf("NodeAttestor \"k8s_psat\" { plugin_data { clusters = { \"c\" = {\nservice_account_allow_list = [\"spire:agent\"]\nkube_config_file = %q } } } }", kubeconfig)
}

// TestS14_NodeDeleted: when a node is deleted from its cluster, its agent's
// stream ends, nothing of it is left, and it does not come back; the agents of
// other nodes stay.
func TestS14_NodeDeleted(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		c.AddAccount(t, "agent")
		rights := []string{"create tokenreviews.authentication.k8s.io", "get pods", "get nodes", "list nodes", "watch nodes"}
		r := start(t, withPlugins(t, psatSection(c.Limited(t, rights...))))
		goes, stays := agentPod(t, c, "goes"), agentPod(t, c, "stays")
		agents := make(map[string]*testAgent)
		for name, payload := range map[string][]byte{"goes": goes, "stays": stays} {
			a, err := r.attestBy(t, "k8s_psat", payload)
			if err != nil {
				t.Fatal(err)
			}
			agents[name] = a
		}
		feed := watch(t, agents["goes"].conn)
		feed.synced(t)
		begin := time.Now()
		c.Delete(t, "nodes", "", "node-goes")
		select {
		case err := <-feed.err:
			t.Logf("the agent's stream ended %v after its node was deleted: %v", time.Since(begin), err)
		case <-time.After(patience):
			t.Fatal("the agent's stream goes on")
		}
		admin := agentv1.NewAgentClient(r.admin(t))
		if _, err := admin.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: wireID(agents["goes"].id.Path())}); status.Code(err) != codes.NotFound {
			t.Errorf("the agent of the deleted node: %v", err)
		}
		if _, err := r.attestBy(t, "k8s_psat", goes); status.Code(err) != codes.PermissionDenied {
			t.Errorf("it attests again: %v", err)
		}
		if _, err := admin.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: wireID(agents["stays"].id.Path())}); err != nil {
			t.Errorf("the agent of the other node: %v", err)
		}
		if text := r.log.String(); !strings.Contains(text, "removed an agent whose node or pod is gone") {
			t.Error("the log does not say that an agent was removed")
		}
	})
}

// TestS14_PodDeleted: the same for a pod and the agent that is named for it, which
// does not come back; that of the next pod of its node stays.
func TestS14_PodDeleted(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		c.AddAccount(t, "agent")
		rights := []string{
			"create tokenreviews.authentication.k8s.io", "get pods", "list pods", "watch pods", "get nodes", "list nodes", "watch nodes",
		}
		section := strings.Replace(psatSection(c.Limited(t, rights...)), "service_account", "use_pod_uid_for_agent_id = true\nservice_account", 1)
		r := start(t, withPlugins(t, section))
		goes := agentPod(t, c, "goes")
		old, err := r.attestBy(t, "k8s_psat", goes)
		if err != nil {
			t.Fatal(err)
		}
		next := c.Token(t, "agent", "agent-next", c.AddPod(t, "agent-next", "node-goes", "agent", nil), "spire-server")
		payload, err := json.Marshal(map[string]string{"cluster": "c", "token": next})
		if err != nil {
			t.Fatal(err)
		}
		stays, err := r.attestBy(t, "k8s_psat", payload)
		if err != nil {
			t.Fatal(err)
		}
		feed := watch(t, old.conn)
		feed.synced(t)
		c.Delete(t, "pods", kubetest.Namespace, "agent-goes")
		select {
		case err := <-feed.err:
			t.Logf("the agent's stream ended: %v", err)
		case <-time.After(patience):
			t.Fatal("the agent's stream goes on")
		}
		if _, err := r.attestBy(t, "k8s_psat", goes); status.Code(err) != codes.PermissionDenied {
			t.Errorf("it attests again: %v", err)
		}
		admin := agentv1.NewAgentClient(r.admin(t))
		for a, want := range map[*testAgent]codes.Code{old: codes.NotFound, stays: codes.OK} {
			if _, err := admin.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: wireID(a.id.Path())}); status.Code(err) != want {
				t.Errorf("agent %s: %v, want %v", a.id, err, want)
			}
		}
	})
}

// TestNodeDeletedMeanwhile: what happened while no server ran is seen at the
// start.
func TestNodeDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	f.AddAccount(t, "agent")
	cfg := withPlugins(t, psatSection(f.Kubeconfig))
	first := start(t, cfg)
	a, err := first.attestBy(t, "k8s_psat", agentPod(t, f.Cluster, "1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.attestBy(t, "k8s_psat", agentPod(t, f.Cluster, "2")); err != nil {
		t.Fatal(err)
	}
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	f.Delete(t, "nodes", "", "node-1")
	second := start(t, cfg)
	soon(t, "the agent is removed", func(ctx context.Context) bool {
		_, err := agentv1.NewAgentClient(second.admin(t)).GetAgent(ctx, &agentv1.GetAgentRequest{Id: wireID(a.id.Path())})
		return status.Code(err) == codes.NotFound
	})
}

// TestBundleInConfigMap: the bundle is there when the server has started, and
// each change of it at once.
func TestBundleInConfigMap(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		r := start(t, withPlugins(t, fmt.Sprintf(`BundlePublisher "k8s_configmap" { plugin_data { clusters = { "c" = {
			format = "spiffe"
			namespace = "spire"
			configmap_name = "spire-bundle"
			configmap_key = "bundle.spiffe"
			kubeconfig_path = %q } } } }`, c.Limited(t, "create configmaps", "patch configmaps"))))
		published := func(authorities int) {
			t.Helper()
			c.Await(t, "configmaps", kubetest.Namespace, "spire-bundle", func(u *unstructured.Unstructured) bool {
				text, _, _ := unstructured.NestedString(u.Object, "data", "bundle.spiffe")
				b, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(testDomain), []byte(text))
				return err == nil && len(b.X509Authorities()) == authorities && len(b.JWTAuthorities()) > 0
			})
		}
		published(1)
		if _, err := r.inside.registry.UpdateBundle(t.Context(), r.inside.roots.td, func(b *registry.Bundle) error {
			b.X509Authorities = append(b.X509Authorities, registry.X509Authority{DER: machineCert(t, newKey(t))})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		published(2)
		answer, err := healthv1.NewHealthClient(r.admin(t)).Check(t.Context(), &healthv1.HealthCheckRequest{Service: "publishing"})
		if err != nil || answer.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of publishing: %v, %v", answer, err)
		}
	})
}

// TestPublishingFails: the server serves all the same, and says what is wrong.
func TestPublishingFails(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	r := start(t, withPlugins(t, fmt.Sprintf(`Notifier "k8sbundle" { plugin_data { kube_config_file_path = %q } }`, f.Limited(t, "get configmaps"))))
	soon(t, "the failure is seen", func(ctx context.Context) bool {
		answer, err := healthv1.NewHealthClient(r.admin(t)).Check(ctx, &healthv1.HealthCheckRequest{Service: "publishing"})
		return err == nil && answer.Status == healthv1.HealthCheckResponse_NOT_SERVING
	})
	answer, err := healthv1.NewHealthClient(r.admin(t)).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || answer.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health of the server: %v, %v", answer, err)
	}
	if text := r.log.String(); !strings.Contains(text, "the trust bundle cannot be published now") || !strings.Contains(text, "cannot patch configmaps") {
		t.Errorf("the log does not say why:\n%s", text)
	}
}
