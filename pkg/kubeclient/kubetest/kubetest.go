package kubetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metaapi "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Assets is the environment variable that names the directory of the programs.
const Assets = "KUBEBUILDER_ASSETS"

// Namespace is one that there is.
const Namespace = "spire"

// Cluster is an API server, with an administrator's view.
type Cluster struct {
	// Kubeconfig is a file by which everything may be done.
	Kubeconfig string
	// Issuer is the claim iss of service-account tokens.
	Issuer string

	url   string
	caPEM []byte
	// made is what Create has made, for wipe.
	made []func(context.Context) error
	// grant lets a bearer of the token it returns do what the rules say.
	grant   func(t testing.TB, rules []string) (token string)
	dynamic dynamic.Interface
}

// Run runs a test with the fake, and with a real API server if there is one: the
// same for all tests of a package, one after the other. TestMain of the package
// has to run [Tests].
func Run(t *testing.T, test func(t *testing.T, c *Cluster)) {
	t.Run("fake", func(t *testing.T) {
		t.Parallel()
		test(t, NewFake(t).Cluster)
	})
	t.Run("real", func(t *testing.T) {
		dir := programs(t)
		t.Parallel()
		test(t, shared.take(t, dir))
	})
}

// admin completes a cluster whose administrator has a bearer token.
func (c *Cluster) admin(t testing.TB, token string) {
	t.Helper()
	c.Kubeconfig = c.kubeconfig(t, token)
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON // what the fake speaks
	config.QPS = -1                                                                                  // no limit
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	c.Create(t, "namespaces", map[string]any{"metadata": map[string]any{"name": Namespace}})
	c.made = nil // it stays
}

// wipe removes what a test has left.
func (c *Cluster) wipe(t testing.TB) {
	ctx := context.WithoutCancel(t.Context())
	for _, remove := range slices.Backward(c.made) {
		if err := remove(ctx); err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("removing what the test has left: %v", err)
		}
	}
	c.made = nil
	// These the program under test makes itself.
	if err := c.of("configmaps", Namespace).DeleteCollection(ctx, metaapi.DeleteOptions{}, metaapi.ListOptions{}); err != nil {
		t.Errorf("removing ConfigMaps: %v", err)
	}
}

// kubeconfig writes a file for the bearer of a token.
func (c *Cluster) kubeconfig(t testing.TB, token string) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: c.url, CertificateAuthorityData: c.caPEM}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Limited returns a kubeconfig file by which only that may be done which the
// rules say, each written "verb resource" with the group behind the resource, as
// in "create tokenreviews.authentication.k8s.io", or "get /path".
func (c *Cluster) Limited(t testing.TB, rules ...string) string {
	t.Helper()
	return c.kubeconfig(t, c.grant(t, rules))
}

// resource is one by its name, with the group behind it. All are of version v1.
func resource(name string) schema.GroupVersionResource {
	name, group, _ := strings.Cut(name, ".")
	return schema.GroupVersionResource{Group: group, Version: "v1", Resource: name}
}

// kinds are the kinds of the resources that tests make.
var kinds = map[string]string{
	"namespaces": "Namespace", "nodes": "Node", "pods": "Pod", "serviceaccounts": "ServiceAccount", "configmaps": "ConfigMap",
	"mutatingwebhookconfigurations": "MutatingWebhookConfiguration", "validatingwebhookconfigurations": "ValidatingWebhookConfiguration",
	"apiservices": "APIService", "clusterroles": "ClusterRole", "clusterrolebindings": "ClusterRoleBinding",
}

func (c *Cluster) of(name, namespace string) dynamic.ResourceInterface {
	if namespace == "" {
		return c.dynamic.Resource(resource(name))
	}
	return c.dynamic.Resource(resource(name)).Namespace(namespace)
}

// Create makes an object of a resource such as "nodes"; its namespace is in its
// metadata. It returns the UID.
func (c *Cluster) Create(t testing.TB, name string, object map[string]any) string {
	t.Helper()
	r := resource(name)
	u := &unstructured.Unstructured{Object: object}
	u.SetAPIVersion(r.GroupVersion().String())
	u.SetKind(kinds[r.Resource])
	made, err := c.of(name, u.GetNamespace()).Create(context.WithoutCancel(t.Context()), u, metaapi.CreateOptions{})
	if err != nil {
		t.Fatalf("making one of %s: %v", name, err)
	}
	c.made = append(c.made, func(ctx context.Context) error {
		return c.of(name, u.GetNamespace()).Delete(ctx, u.GetName(), metaapi.DeleteOptions{GracePeriodSeconds: new(int64)})
	})
	return string(made.GetUID())
}

// Get reads an object.
func (c *Cluster) Get(t testing.TB, name, namespace, object string) *unstructured.Unstructured {
	t.Helper()
	got, err := c.of(name, namespace).Get(t.Context(), object, metaapi.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Exists says whether there is an object.
func (c *Cluster) Exists(t testing.TB, name, namespace, object string) bool {
	t.Helper()
	_, err := c.of(name, namespace).Get(t.Context(), object, metaapi.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// Update writes an object that was read, and changed.
func (c *Cluster) Update(t testing.TB, name string, object *unstructured.Unstructured) {
	t.Helper()
	if _, err := c.of(name, object.GetNamespace()).Update(t.Context(), object, metaapi.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Delete removes an object at once.
func (c *Cluster) Delete(t testing.TB, name, namespace, object string) {
	t.Helper()
	if err := c.of(name, namespace).Delete(t.Context(), object, metaapi.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
}

// Await watches an object until it is as a test wants.
func (c *Cluster) Await(t testing.TB, name, namespace, object string, good func(*unstructured.Unstructured) bool) {
	t.Helper()
	w, err := c.of(name, namespace).Watch(t.Context(), metaapi.ListOptions{FieldSelector: "metadata.name=" + object})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if u, ok := event.Object.(*unstructured.Unstructured); ok && u.GetName() == object && good(u) {
			return
		}
	}
	t.Fatalf("the watch of %s %s ended before it was as it should be", name, object)
}

// AddNode makes a node and returns its UID.
func (c *Cluster) AddNode(t testing.TB, name string, labels map[string]any) string {
	t.Helper()
	return c.Create(t, "nodes", map[string]any{"metadata": map[string]any{"name": name, "labels": labels}})
}

// AddAccount makes a service account and returns its UID.
func (c *Cluster) AddAccount(t testing.TB, name string) string {
	t.Helper()
	return c.Create(t, "serviceaccounts", map[string]any{"metadata": map[string]any{"name": name, "namespace": Namespace}})
}

// AddPod makes a pod on a node and returns its UID.
func (c *Cluster) AddPod(t testing.TB, name, node, account string, labels map[string]any) string {
	t.Helper()
	return c.Create(t, "pods", map[string]any{
		"metadata": map[string]any{"name": name, "namespace": Namespace, "labels": labels},
		"spec": map[string]any{
			"nodeName": node, "serviceAccountName": account,
			"containers": []any{map[string]any{"name": "agent", "image": "example.org/agent"}},
		},
	})
}

// Token makes a token of a service account that is bound to a pod, if one is
// named.
func (c *Cluster) Token(t testing.TB, account, pod, podUID string, audiences ...string) string {
	t.Helper()
	spec := map[string]any{}
	for _, a := range audiences {
		list, _ := spec["audiences"].([]any)
		spec["audiences"] = append(list, a)
	}
	if pod != "" {
		if uid := string(c.Get(t, "pods", Namespace, pod).GetUID()); uid != podUID {
			t.Fatalf("pod %s has the UID %s, want %s", pod, uid, podUID)
		}
		spec["boundObjectRef"] = map[string]any{"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": podUID}
	}
	request := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": map[string]any{"name": account}, "spec": spec,
	}}
	made, err := c.of("serviceaccounts", Namespace).Create(t.Context(), request, metaapi.CreateOptions{}, "token")
	if err != nil {
		t.Fatal(err)
	}
	token, _, _ := unstructured.NestedString(made.Object, "status", "token")
	return token
}

// programs is the directory of the programs, or skips the test.
func programs(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(Assets)
	if dir == "" {
		t.Skipf("%s does not name a directory with etcd and kube-apiserver: only the fake API server is tested", Assets)
	}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Skipf("%s: %v: only the fake API server is tested", Assets, err)
		}
	}
	return dir
}

// ruleParts are the verb and the resource, or the path, of a rule.
func ruleParts(rule string) (verb, what string) {
	verb, what, ok := strings.Cut(rule, " ")
	if !ok {
		panic(fmt.Sprintf("the rule %q is not a verb and a resource", rule))
	}
	return verb, what
}
