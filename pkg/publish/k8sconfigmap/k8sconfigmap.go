package k8sconfigmap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/kubeclient"
	"github.com/credence-id/credence/pkg/publish"
	"github.com/credence-id/credence/pkg/registry"
)

// Name is the plugin's.
const Name = "k8s_configmap"

// manager is the field manager in Kubernetes, as SPIRE calls it.
const manager = "spire-bundlepublisher-" + Name

// maxRefreshHint bounds refresh_hint.
const maxRefreshHint = 10 * 365 * 24 * time.Hour

// Config is plugin_data.
//
//credence:plugin_data server BundlePublisher k8s_configmap
type Config struct {
	// Clusters are where the bundle is published, by any name.
	Clusters map[string]Cluster `hcl:"clusters"`
}

// Cluster is the section of one cluster.
type Cluster struct {
	// Format is one of spiffe, jwks and pem; required.
	Format string `hcl:"format"`
	// Namespace is the ConfigMap's; required.
	Namespace string `hcl:"namespace"`
	// ConfigMapName is the ConfigMap's name; required. It is made if it is not
	// there.
	ConfigMapName string `hcl:"configmap_name"`
	// ConfigMapKey is the key in it; required.
	ConfigMapKey string `hcl:"configmap_key"`
	// KubeConfigPath says how to reach the API server.
	KubeConfigPath string `hcl:"kubeconfig_path" unset:"the cluster that the server runs in"`
	// RefreshHint is how often readers should look, for the format spiffe.
	RefreshHint time.Duration `hcl:"refresh_hint" unset:"the bundle's own"`
}

// Validate reports every problem with its key. It touches no file.
func (c Config) Validate() error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(c.Clusters)) {
		bad := func(key, format string, args ...any) {
			problems = append(problems, fmt.Errorf("clusters.%s.%s: %w", name, key, fmt.Errorf(format, args...)))
		}
		cluster := c.Clusters[name]
		if cluster.Format == "" {
			bad("format", "is required: spiffe, jwks or pem")
		} else if _, err := publish.ParseFormat(cluster.Format); err != nil {
			bad("format", "%w", err)
		}
		for _, key := range [][2]string{
			{"namespace", cluster.Namespace}, {"configmap_name", cluster.ConfigMapName}, {"configmap_key", cluster.ConfigMapKey},
		} {
			if key[1] == "" {
				bad(key[0], "is required")
			}
		}
		if cluster.RefreshHint < 0 || cluster.RefreshHint > maxRefreshHint {
			bad("refresh_hint", "is not between 0s and %v", maxRefreshHint)
		}
	}
	return errors.Join(problems...)
}

// CheckFiles says what is wrong with the kubeconfig files that are named, as
// they are now.
func (c Config) CheckFiles() error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(c.Clusters)) {
		if err := kubeclient.Check(c.Clusters[name].KubeConfigPath); err != nil {
			problems = append(problems, fmt.Errorf("clusters.%s.kubeconfig_path: %w", name, err))
		}
	}
	return errors.Join(problems...)
}

// Targets are the places of a valid configuration. It connects to nothing.
func (c Config) Targets() []publish.Target {
	var out []publish.Target
	for _, name := range slices.Sorted(maps.Keys(c.Clusters)) {
		cluster := c.Clusters[name]
		out = append(out, publish.Target{Plugin: Name, Name: name, Writer: &writer{cluster, kubeclient.New(cluster.KubeConfigPath)}})
	}
	return out
}

// writer writes one ConfigMap.
type writer struct {
	Cluster

	api *kubeclient.Client
}

// Write is publish.Writer.
func (w *writer) Write(ctx context.Context, b *registry.Bundle) error {
	format, err := publish.ParseFormat(w.Format)
	if err != nil {
		return err
	}
	text, err := publish.Encode(b, format, w.RefreshHint)
	if err != nil {
		return err
	}
	return w.api.ApplyConfigMap(ctx, w.Namespace, w.ConfigMapName, w.ConfigMapKey, string(text), manager)
}
