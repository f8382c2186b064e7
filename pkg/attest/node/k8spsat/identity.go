package k8spsat

import (
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
)

// Selectors that the watches find agents by.
const (
	selCluster   = "cluster"
	selNamespace = "agent_ns"
	selPodName   = "agent_pod_name"
	selPodUID    = "agent_pod_uid"
	selNodeName  = "agent_node_name"
	selNodeUID   = "agent_node_uid"
)

func selector(kind, value string) attest.Selector {
	return attest.Selector{Type: Name, Value: kind + ":" + value}
}

// identify says who the agent in the pod is.
func (c *cluster) identify(td spiffeid.TrustDomain, h holder, pod Pod, machine Node) (node.Result, error) {
	selectors := []attest.Selector{
		selector(selCluster, c.name),
		selector(selNamespace, h.namespace),
		selector("agent_sa", h.account.Name),
		selector(selPodName, h.pod.Name),
		selector(selPodUID, pod.UID),
		selector(selNodeName, pod.NodeName),
		selector(selNodeUID, machine.UID),
	}
	if pod.HostIP != "" {
		selectors = append(selectors, selector("agent_node_ip", pod.HostIP))
	}
	selectors = appendLabels(selectors, "agent_node_label", machine.Labels, c.nodeLabels)
	selectors = appendLabels(selectors, "agent_pod_label", pod.Labels, c.podLabels)
	set := attest.NewSelectors(selectors...)
	if err := set.Validate(); err != nil {
		return node.Result{}, fmt.Errorf("cluster %q gives no good selectors: %w", c.name, err)
	}
	segments := []string{"spire", "agent", Name, c.name, machine.UID}
	if c.byPod {
		segments = []string{"spire", "agent", Name, c.name, "pod", pod.UID}
	}
	id, err := spiffeid.FromSegments(td, segments...)
	if err != nil {
		return node.Result{}, fmt.Errorf("cluster %q gives no good agent ID: %w", c.name, err)
	}
	return node.Result{AgentID: id, Selectors: set, CanReattest: true}, nil
}

// appendLabels adds the labels whose keys are allowed.
func appendLabels(to []attest.Selector, kind string, labels map[string]string, allowed []string) []attest.Selector {
	for key, value := range labels {
		if slices.Contains(allowed, key) {
			to = append(to, selector(kind, key+":"+value))
		}
	}
	return to
}
