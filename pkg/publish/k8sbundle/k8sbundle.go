package k8sbundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/credence-id/credence/pkg/kubeclient"
	"github.com/credence-id/credence/pkg/publish"
	"github.com/credence-id/credence/pkg/registry"
)

// Name is the plugin's.
const Name = "k8sbundle"

// Config is plugin_data: one cluster, and perhaps more of them in clusters.
// With clusters alone there is no other.
//
//credence:plugin_data server Notifier k8sbundle
type Config struct {
	// Cluster has the keys of the first.
	Cluster
	// Clusters are further clusters, each with the same keys.
	Clusters []Cluster `hcl:"clusters"`
}

// Cluster is where the authorities are written in one cluster.
type Cluster struct {
	// Namespace is the ConfigMap's.
	Namespace string `hcl:"namespace" unset:"spire"`
	// Name is the name of a ConfigMap that is there.
	Name string `hcl:"config_map" unset:"spire-bundle"`
	// Key is the key in it.
	Key string `hcl:"config_map_key" unset:"bundle.crt"`
	// WebhookLabel is a label; validating and mutating webhook configurations
	// that have it with the value true get the authorities.
	WebhookLabel string `hcl:"webhook_label"`
	// APIServiceLabel is the same for APIServices.
	APIServiceLabel string `hcl:"api_service_label"`
	// KubeConfigFilePath says how to reach the API server; required in clusters.
	KubeConfigFilePath string `hcl:"kube_config_file_path" unset:"the cluster that the server runs in"`
}

// all are the clusters in use, each with where it is configured.
func (c Config) all() (clusters []Cluster, keys []string) {
	if c.Cluster != (Cluster{}) || len(c.Clusters) == 0 {
		clusters, keys = append(clusters, c.Cluster), append(keys, "")
	}
	for i, cluster := range c.Clusters {
		clusters, keys = append(clusters, cluster), append(keys, fmt.Sprintf("clusters[%d].", i))
	}
	return clusters, keys
}

// Validate reports every problem with its key. It touches no file.
func (c Config) Validate() error {
	var problems []error
	clusters, keys := c.all()
	for i, cluster := range clusters {
		if keys[i] != "" && cluster.KubeConfigFilePath == "" {
			problems = append(problems, fmt.Errorf("%skube_config_file_path: is required: the cluster that the server runs in is configured outside clusters", keys[i]))
		}
		for _, label := range [][2]string{{"webhook_label", cluster.WebhookLabel}, {"api_service_label", cluster.APIServiceLabel}} {
			if label[1] == "" {
				continue
			}
			for _, why := range validation.IsQualifiedName(label[1]) {
				problems = append(problems, fmt.Errorf("%s%s: %q is no key of a label: %s", keys[i], label[0], label[1], why))
			}
		}
	}
	return errors.Join(problems...)
}

// CheckFiles says what is wrong with the kubeconfig files that are named, as
// they are now.
func (c Config) CheckFiles() error {
	var problems []error
	clusters, keys := c.all()
	for i, cluster := range clusters {
		if err := kubeclient.Check(cluster.KubeConfigFilePath); err != nil {
			problems = append(problems, fmt.Errorf("%skube_config_file_path: %w", keys[i], err))
		}
	}
	return errors.Join(problems...)
}

// Targets are the places of a valid configuration: for each cluster the
// ConfigMap, and what has labels. It connects to nothing.
func (c Config) Targets() []publish.Target {
	var out []publish.Target
	clusters, _ := c.all()
	for _, cluster := range clusters {
		api := kubeclient.New(cluster.KubeConfigFilePath)
		name := cmp.Or(cluster.KubeConfigFilePath, "in-cluster")
		out = append(out, publish.Target{Plugin: Name, Name: name + " configmap", Writer: &configMap{cluster, api}})
		if label := cluster.WebhookLabel; label != "" {
			kinds := []kubeclient.CAKind{kubeclient.MutatingWebhooks, kubeclient.ValidatingWebhooks}
			out = append(out, publish.Target{Plugin: Name, Name: name + " webhooks", Writer: &objects{label + "=true", kinds, api}})
		}
		if label := cluster.APIServiceLabel; label != "" {
			kinds := []kubeclient.CAKind{kubeclient.APIServices}
			out = append(out, publish.Target{Plugin: Name, Name: name + " apiservices", Writer: &objects{label + "=true", kinds, api}})
		}
	}
	return out
}

// configMap writes the ConfigMap.
type configMap struct {
	Cluster

	api *kubeclient.Client
}

// Write is publish.Writer.
func (w *configMap) Write(ctx context.Context, b *registry.Bundle) error {
	pem, err := publish.Encode(b, publish.PEM, 0)
	if err != nil {
		return err
	}
	return w.api.PatchConfigMap(ctx, cmp.Or(w.Namespace, "spire"), cmp.Or(w.Name, "spire-bundle"), cmp.Or(w.Key, "bundle.crt"), string(pem))
}

// objects writes to what has a label.
type objects struct {
	label string
	kinds []kubeclient.CAKind
	api   *kubeclient.Client
}

var _ publish.Watcher = (*objects)(nil)

// Write is publish.Writer.
func (w *objects) Write(ctx context.Context, b *registry.Bundle) error {
	pem, err := publish.Encode(b, publish.PEM, 0)
	if err != nil {
		return err
	}
	var problems []error
	for _, kind := range w.kinds {
		problems = append(problems, w.api.SetCABundle(ctx, kind, w.label, pem))
	}
	return errors.Join(problems...)
}

// Watch is publish.Watcher.
func (w *objects) Watch(ctx context.Context, changed func()) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, kind := range w.kinds {
		g.Go(func() error { return w.api.WatchCA(ctx, kind, w.label, changed) })
	}
	return g.Wait()
}
