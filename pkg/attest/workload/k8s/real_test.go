package k8s

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/kubeclient/kubetest"
	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

// cluster is a real API server, with an administrator's rights.
type cluster struct {
	url, token string
	client     *http.Client
}

// access reads a kubeconfig of kubetest's.
func access(t *testing.T, path string) (url, token string, ca []byte) {
	t.Helper()
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	in := config.Contexts[config.CurrentContext]
	return config.Clusters[in.Cluster].Server, config.AuthInfos[in.AuthInfo].Token, config.Clusters[in.Cluster].CertificateAuthorityData
}

// call asks for something to be done, and returns the UID of what it is done to.
func (c *cluster) call(t *testing.T, method, path, kind string, body any) (uid string) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, c.url+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", kind)
	resp, err := c.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, answer, err)
	}
	var made struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(answer, &made); err != nil {
		t.Fatal(err)
	}
	return made.Metadata.UID
}

const (
	plain = "application/json"
	merge = "application/merge-patch+json"
)

// TestRealAPIServer: the watch, played with the real one.
func TestRealAPIServer(t *testing.T) {
	t.Parallel()
	real := kubetest.Start(t)
	admin := &cluster{client: &http.Client{}}
	var ca []byte
	admin.url, admin.token, ca = access(t, real.Kubeconfig)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	admin.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(admin.client.CloseIdleConnections)
	_, token, _ := access(t, real.Limited(t, "list pods", "watch pods", "list namespaces", "watch namespaces"))
	dir := t.TempDir()
	caPath, tokenPath := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	for path, content := range map[string][]byte{caPath: ca, tokenPath: []byte(token)} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := start(t, Config{
		PodSource: sourceAPIServer, NodeName: node, APIServerURL: admin.url, APIServerCAPath: caPath, APIServerTokenPath: tokenPath,
		EnableNamespaceLabels: true,
	}, Options{Needs: never})
	a.await(t, func(s contactState) bool { return s.live })

	const pods = "/api/v1/namespaces/" + kubetest.Namespace + "/pods"
	admin.call(t, http.MethodPatch, "/api/v1/namespaces/"+kubetest.Namespace, merge, object{"metadata": object{"labels": object{"team": "shop"}}})
	made := func(name, node string) string {
		return admin.call(t, http.MethodPost, pods, plain, object{
			"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "labels": object{"app": "one"}},
			"spec": object{"nodeName": node, "serviceAccountName": "web", "automountServiceAccountToken": false,
				"containers": []object{{"name": "main", "image": "registry.test/main:1"}}},
		})
	}
	made("elsewhere", "another-node")
	uid := made("here", node)
	want := set("ns:"+kubetest.Namespace, "sa:web", "node-name:"+node, "pod-uid:"+uid, "pod-name:here", "pod-label:app:one",
		"pod-image-count:1", "pod-init-image-count:0", "ns-label:team:shop", "ns-label:kubernetes.io/metadata.name:"+kubetest.Namespace)
	got, invalidated := attestNow(t, a, uid, id("1"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("without a status (-want +got):\n%s", diff)
	}
	if n := a.pods.count(); n != 1 {
		t.Errorf("%d pods are known", n)
	}

	began := time.Now()
	admin.call(t, http.MethodPatch, pods+"/here", merge, object{"metadata": object{"labels": object{"app": "two"}}})
	awaitClosed(t, invalidated)
	if d := time.Since(began); d > time.Second {
		t.Errorf("a label took %v", d)
	}
	admin.call(t, http.MethodPatch, pods+"/here/status", merge, object{"status": object{"containerStatuses": []object{{
		"name": "main", "image": "registry.test/main:1", "imageID": "registry.test/main@sha256:" + id("a"), "containerID": "containerd://" + id("1"),
		"ready": true, "restartCount": 0, "state": object{"running": object{"startedAt": "2026-01-01T00:00:00Z"}},
	}}}})
	want = with(without(want, "pod-label"), "pod-label:app:two", "container-name:main", "container-image:registry.test/main:1",
		"container-image:registry.test/main@sha256:"+id("a"), "pod-image:registry.test/main:1", "pod-image:registry.test/main@sha256:"+id("a"))
	for {
		if got, invalidated = attestNow(t, a, uid, id("1")); got.Equal(want) {
			break
		}
		awaitClosed(t, invalidated)
	}
	admin.call(t, http.MethodDelete, pods+"/here", plain, object{"gracePeriodSeconds": 0})
	awaitClosed(t, invalidated)
	if _, _, err := a.Attest(patient(t), process(uid, id("1"))); err == nil {
		t.Error("a pod that was deleted has selectors")
	}
}

type object = map[string]any
