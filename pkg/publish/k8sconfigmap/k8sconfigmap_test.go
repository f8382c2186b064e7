package k8sconfigmap

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/credence-id/credence/pkg/kubeclient/kubetest"
	"github.com/credence-id/credence/pkg/registry"
)

func cluster(kubeconfig string) Cluster {
	return Cluster{
		Format: "spiffe", Namespace: kubetest.Namespace, ConfigMapName: "spire-bundle", ConfigMapKey: "bundle.spiffe",
		KubeConfigPath: kubeconfig, RefreshHint: time.Minute,
	}
}

// TestPublish writes one bundle after the other, with the rights that the
// documentation asks for.
func TestPublish(t *testing.T) {
	t.Parallel()
	c := kubetest.NewFake(t)
	config := Config{Clusters: map[string]Cluster{"here": cluster(c.Limited(t, "create configmaps", "patch configmaps"))}}
	if err := config.CheckFiles(); err != nil {
		t.Fatal(err)
	}
	targets := config.Targets()
	if len(targets) != 1 || targets[0].Name != "here" || targets[0].Plugin != "k8s_configmap" {
		t.Fatalf("targets %v", targets)
	}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for n := range uint64(2) {
		if err := targets[0].Writer.Write(t.Context(), &registry.Bundle{TrustDomain: td, SequenceNumber: 1 + n}); err != nil {
			t.Fatal(err)
		}
		object := c.Get(t, "configmaps", kubetest.Namespace, "spire-bundle")
		text, _, _ := unstructured.NestedString(object.Object, "data", "bundle.spiffe")
		got, err := spiffebundle.Parse(td, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if seq, _ := got.SequenceNumber(); seq != 1+n {
			t.Errorf("sequence number %d, want %d", seq, 1+n)
		}
		if hint, _ := got.RefreshHint(); hint != time.Minute {
			t.Errorf("refresh hint %v", hint)
		}
	}
}

// TestMayNot: the error says which right is missing.
func TestMayNot(t *testing.T) {
	t.Parallel()
	f := kubetest.NewFake(t)
	config := Config{Clusters: map[string]Cluster{"here": cluster(f.Limited(t, "get configmaps"))}}
	err := config.Targets()[0].Writer.Write(context.Background(), &registry.Bundle{})
	if err == nil || !strings.Contains(err.Error(), "ConfigMap spire/spire-bundle (verbs patch") || !strings.Contains(err.Error(), "cannot patch configmaps") {
		t.Errorf("got %v", err)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*Cluster)) Cluster {
		c := cluster("")
		change(&c)
		return c
	}
	for name, test := range map[string]struct {
		cluster Cluster
		want    string
	}{
		"good":           {cluster(""), ""},
		"no format":      {with(func(c *Cluster) { c.Format = "" }), "clusters.c.format: is required"},
		"another format": {with(func(c *Cluster) { c.Format = "der" }), `clusters.c.format: "der" is not known`},
		"no namespace":   {with(func(c *Cluster) { c.Namespace = "" }), "clusters.c.namespace: is required"},
		"no name":        {with(func(c *Cluster) { c.ConfigMapName = "" }), "clusters.c.configmap_name: is required"},
		"no key":         {with(func(c *Cluster) { c.ConfigMapKey = "" }), "clusters.c.configmap_key: is required"},
		"negative hint":  {with(func(c *Cluster) { c.RefreshHint = -1 }), "clusters.c.refresh_hint"},
		"endless hint":   {with(func(c *Cluster) { c.RefreshHint = maxRefreshHint + 1 }), "clusters.c.refresh_hint"},
	} {
		err := Config{Clusters: map[string]Cluster{"c": test.cluster}}.Validate()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	lost := Config{Clusters: map[string]Cluster{"c": cluster("/nowhere/kubeconfig")}}
	if err := lost.CheckFiles(); err == nil || !strings.Contains(err.Error(), "clusters.c.kubeconfig_path") {
		t.Errorf("a file that is not there: %v", err)
	}
}
