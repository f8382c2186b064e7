package k8sbundle

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/credence-id/credence/pkg/kubeclient/kubetest"
	"github.com/credence-id/credence/pkg/publish"
	"github.com/credence-id/credence/pkg/registry"
)

const hooks = "validatingwebhookconfigurations.admissionregistration.k8s.io"

func bundle(t *testing.T) (*registry.Bundle, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	b := &registry.Bundle{X509Authorities: []registry.X509Authority{{DER: der}}}
	pem, err := publish.Encode(b, publish.PEM, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b, string(pem)
}

func hook(name string, labels map[string]any) map[string]any {
	return map[string]any{
		"metadata": map[string]any{"name": name, "labels": labels},
		"webhooks": []any{map[string]any{
			"name": "a.example.org", "sideEffects": "None", "admissionReviewVersions": []any{"v1"},
			"clientConfig": map[string]any{"url": "https://hook.example.org"},
		}},
	}
}

// caBundle is of a configuration's only webhook.
func caBundle(u *unstructured.Unstructured) string {
	list, _, _ := unstructured.NestedSlice(u.Object, "webhooks")
	if len(list) != 1 {
		return ""
	}
	text, _, _ := unstructured.NestedString(list[0].(map[string]any), "clientConfig", "caBundle")
	pem, _ := base64.StdEncoding.DecodeString(text)
	return string(pem)
}

// TestPublish: the ConfigMap, and what has the label now or gets it later.
func TestPublish(t *testing.T) {
	t.Parallel()
	c := kubetest.NewFake(t)
	c.Create(t, "configmaps", map[string]any{"metadata": map[string]any{"name": "spire-bundle", "namespace": kubetest.Namespace}})
	c.Create(t, hooks, hook("early", map[string]any{"spiffe.io/webhook": "true"}))
	targets := Config{Cluster: Cluster{KubeConfigFilePath: c.Kubeconfig, WebhookLabel: "spiffe.io/webhook", APIServiceLabel: "spiffe.io/api"}}.Targets()
	b, pem := bundle(t)
	for _, target := range targets {
		if err := target.Writer.Write(t.Context(), b); err != nil {
			t.Fatalf("%s: %v", target.Name, err)
		}
	}
	text, _, _ := unstructured.NestedString(c.Get(t, "configmaps", kubetest.Namespace, "spire-bundle").Object, "data", "bundle.crt")
	if text != pem {
		t.Errorf("ConfigMap: %q", text)
	}
	if got := caBundle(c.Get(t, hooks, "", "early")); got != pem {
		t.Errorf("webhook: %q", got)
	}
	// What the publisher does with a Watcher.
	watcher := targets[1].Writer.(publish.Watcher)
	ctx, cancel := context.WithCancel(t.Context())
	done, again := make(chan error, 1), make(chan bool, 1)
	go func() {
		done <- watcher.Watch(ctx, func() {
			select {
			case again <- true:
			default:
			}
		})
	}()
	writes := make(chan struct{})
	go func() {
		for {
			select {
			case <-ctx.Done():
				close(writes)
				return
			case <-again:
				if err := watcher.Write(ctx, b); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		}
	}()
	c.Create(t, hooks, hook("late", map[string]any{"spiffe.io/webhook": "true"}))
	c.Await(t, hooks, "", "late", func(u *unstructured.Unstructured) bool { return caBundle(u) == pem })
	cancel()
	<-writes
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

func TestClusters(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		config Config
		want   []string // names of targets
		err    string
	}{
		"nothing":    {Config{}, []string{"in-cluster configmap"}, ""},
		"labels":     {Config{Cluster: Cluster{WebhookLabel: "a/b", APIServiceLabel: "c"}}, []string{"in-cluster configmap", "in-cluster webhooks", "in-cluster apiservices"}, ""},
		"others":     {Config{Clusters: []Cluster{{KubeConfigFilePath: "/x"}, {KubeConfigFilePath: "/y"}}}, []string{"/x configmap", "/y configmap"}, ""},
		"and others": {Config{Cluster: Cluster{Namespace: "n"}, Clusters: []Cluster{{KubeConfigFilePath: "/x"}}}, []string{"in-cluster configmap", "/x configmap"}, ""},
		"no file":    {Config{Clusters: []Cluster{{Namespace: "n"}}}, nil, "clusters[0].kube_config_file_path: is required"},
		"bad label":  {Config{Cluster: Cluster{WebhookLabel: "a b"}}, nil, "webhook_label"},
		"bad labels": {Config{Clusters: []Cluster{{KubeConfigFilePath: "/x", APIServiceLabel: "/"}}}, nil, "clusters[0].api_service_label"},
	} {
		err := test.config.Validate()
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v, want %q", name, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, target := range test.config.Targets() {
			got = append(got, target.Name)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	err := Config{Clusters: []Cluster{{KubeConfigFilePath: "/nowhere"}}}.CheckFiles()
	if err == nil || !strings.Contains(err.Error(), "clusters[0].kube_config_file_path") {
		t.Errorf("a file that is not there: %v", err)
	}
}
