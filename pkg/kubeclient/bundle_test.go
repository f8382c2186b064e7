package kubeclient_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/credence-id/credence/pkg/kubeclient"
	"github.com/credence-id/credence/pkg/kubeclient/kubetest"
)

func dataOf(t *testing.T, u *unstructured.Unstructured) map[string]string {
	t.Helper()
	data, _, err := unstructured.NestedStringMap(u.Object, "data")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestApplyConfigMap: it is made, and of one that is there only the key is
// touched, also when somebody else has set it.
func TestApplyConfigMap(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		api := kubeclient.New(c.Limited(t, "create configmaps", "patch configmaps"))
		apply := func(name, value string) map[string]string {
			t.Helper()
			if err := api.ApplyConfigMap(t.Context(), kubetest.Namespace, name, "bundle.spiffe", value, "tester"); err != nil {
				t.Fatal(err)
			}
			return dataOf(t, c.Get(t, "configmaps", kubetest.Namespace, name))
		}
		if diff := cmp.Diff(map[string]string{"bundle.spiffe": "1"}, apply("new", "1")); diff != "" {
			t.Errorf("a new one (-want +got):\n%s", diff)
		}
		c.Create(t, "configmaps", map[string]any{
			"metadata": map[string]any{"name": "old", "namespace": kubetest.Namespace},
			"data":     map[string]any{"other": "x", "bundle.spiffe": "by hand"},
		})
		for _, value := range []string{"1", "2"} {
			if diff := cmp.Diff(map[string]string{"other": "x", "bundle.spiffe": value}, apply("old", value)); diff != "" {
				t.Errorf("one that was there (-want +got):\n%s", diff)
			}
		}
	})
}

func TestPatchConfigMap(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		api := kubeclient.New(c.Limited(t, "patch configmaps"))
		patch := func() error {
			return api.PatchConfigMap(t.Context(), kubetest.Namespace, "spire-bundle", "bundle.crt", "PEM")
		}
		if err := patch(); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "has to be made first") {
			t.Errorf("without a ConfigMap: %v", err)
		}
		c.Create(t, "configmaps", map[string]any{
			"metadata": map[string]any{"name": "spire-bundle", "namespace": kubetest.Namespace}, "data": map[string]any{"other": "x"},
		})
		if err := patch(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{"other": "x", "bundle.crt": "PEM"}, dataOf(t, c.Get(t, "configmaps", kubetest.Namespace, "spire-bundle"))); diff != "" {
			t.Errorf("data (-want +got):\n%s", diff)
		}
		other := kubeclient.New(c.Limited(t, "get configmaps"))
		if err := other.PatchConfigMap(t.Context(), kubetest.Namespace, "spire-bundle", "bundle.crt", "PEM"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "verb patch") {
			t.Errorf("without the right: %v", err)
		}
	})
}

const hooksGroup = ".admissionregistration.k8s.io"

// webhooks makes a configuration with two webhooks.
func webhooks(t *testing.T, c *kubetest.Cluster, resource, name string, labels map[string]any) {
	t.Helper()
	hook := func(name string) map[string]any {
		return map[string]any{
			"name": name, "sideEffects": "None", "admissionReviewVersions": []any{"v1"},
			"clientConfig": map[string]any{"url": "https://hook.example.org/" + name},
			"rules": []any{map[string]any{
				"apiGroups": []any{"example.org"}, "apiVersions": []any{"v1"}, "operations": []any{"CREATE"}, "resources": []any{"things"},
			}},
		}
	}
	c.Create(t, resource+hooksGroup, map[string]any{
		"metadata": map[string]any{"name": name, "labels": labels}, "webhooks": []any{hook("a.example.org"), hook("b.example.org")},
	})
}

// bundles are the caBundles of an object's webhooks, decoded, with their URLs.
func bundles(t *testing.T, u *unstructured.Unstructured) []string {
	t.Helper()
	hooks, _, err := unstructured.NestedSlice(u.Object, "webhooks")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, h := range hooks {
		config := h.(map[string]any)["clientConfig"].(map[string]any)
		text, _ := config["caBundle"].(string)
		pem, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, config["url"].(string)+" "+string(pem))
	}
	return out
}

// rightsCA are what the server's role has for webhooks and APIServices.
var rightsCA = func() (out []string) {
	for _, resource := range []string{"mutatingwebhookconfigurations" + hooksGroup, "validatingwebhookconfigurations" + hooksGroup, "apiservices.apiregistration.k8s.io"} {
		for _, verb := range []string{"get", "list", "watch", "patch"} {
			out = append(out, verb+" "+resource)
		}
	}
	return out
}()

// newPEM is a certificate, as API servers look at what they are given.
func newPEM(t *testing.T) string {
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
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestSetCABundle: objects with the label get the authorities, nothing else of
// them changes, and those without the label are left.
func TestSetCABundle(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		text := newPEM(t)
		labels := map[string]any{"spiffe.io/webhook": "true"}
		webhooks(t, c, "mutatingwebhookconfigurations", "with", labels)
		webhooks(t, c, "mutatingwebhookconfigurations", "without", map[string]any{"spiffe.io/webhook": "false"})
		webhooks(t, c, "validatingwebhookconfigurations", "with", labels)
		c.Create(t, "apiservices.apiregistration.k8s.io", map[string]any{
			"metadata": map[string]any{"name": "v1.things.example.org", "labels": labels},
			"spec": map[string]any{
				"group": "things.example.org", "version": "v1", "groupPriorityMinimum": int64(7), "versionPriority": int64(8),
				"service": map[string]any{"name": "s", "namespace": "default", "port": int64(443)},
			},
		})
		api := kubeclient.New(c.Limited(t, rightsCA...))
		set := func() {
			t.Helper()
			for _, kind := range []kubeclient.CAKind{kubeclient.MutatingWebhooks, kubeclient.ValidatingWebhooks, kubeclient.APIServices} {
				if err := api.SetCABundle(t.Context(), kind, "spiffe.io/webhook=true", []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
		}
		set()
		want := []string{"https://hook.example.org/a.example.org " + text, "https://hook.example.org/b.example.org " + text}
		for _, resource := range []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"} {
			if diff := cmp.Diff(want, bundles(t, c.Get(t, resource+hooksGroup, "", "with"))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", resource, diff)
			}
		}
		if got := bundles(t, c.Get(t, "mutatingwebhookconfigurations"+hooksGroup, "", "without")); !strings.HasSuffix(got[0], " ") {
			t.Errorf("without the label: %v", got)
		}
		service := c.Get(t, "apiservices.apiregistration.k8s.io", "", "v1.things.example.org")
		bundle, _, _ := unstructured.NestedString(service.Object, "spec", "caBundle")
		if minimum, _, _ := unstructured.NestedInt64(service.Object, "spec", "groupPriorityMinimum"); bundle != base64.StdEncoding.EncodeToString([]byte(text)) || minimum != 7 {
			t.Errorf("APIService: %v", service.Object["spec"])
		}
		// What has them is not written again.
		before := c.Get(t, "mutatingwebhookconfigurations"+hooksGroup, "", "with").GetResourceVersion()
		set()
		if after := c.Get(t, "mutatingwebhookconfigurations"+hooksGroup, "", "with").GetResourceVersion(); after != before {
			t.Errorf("written again: version %s, before %s", after, before)
		}
	})
}

// TestWatchCA: what gets the label later is told of.
func TestWatchCA(t *testing.T) {
	t.Parallel()
	kubetest.Run(t, func(t *testing.T, c *kubetest.Cluster) {
		api := kubeclient.New(c.Limited(t, rightsCA...))
		ctx, cancel := context.WithCancel(t.Context())
		told, done := make(chan bool, 16), make(chan error, 1)
		go func() {
			done <- api.WatchCA(ctx, kubeclient.ValidatingWebhooks, "spiffe.io/webhook=true", func() { told <- true })
		}()
		wait := func(what string) {
			t.Helper()
			select {
			case <-told:
			case <-time.After(time.Minute):
				t.Fatalf("%s: nothing is told", what)
			}
		}
		wait("at the begin")
		webhooks(t, c, "validatingwebhookconfigurations", "w", nil)
		object := c.Get(t, "validatingwebhookconfigurations"+hooksGroup, "", "w")
		object.SetLabels(map[string]string{"spiffe.io/webhook": "true"})
		c.Update(t, "validatingwebhookconfigurations"+hooksGroup, object)
		wait("with the label")
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("WatchCA: %v", err)
		}
	})
}
