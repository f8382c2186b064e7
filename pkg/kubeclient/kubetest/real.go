package kubetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metaapi "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// startTimeout bounds the start of the two programs, on a busy machine.
const startTimeout = 2 * time.Minute

// adminToken is the administrator's, of a cluster that is gone after the test.
const adminToken = "test-administrator"

// Start runs an API server, with etcd, for one test alone, which is skipped where
// the programs are not there.
func Start(t testing.TB) *Cluster {
	t.Helper()
	bin, own := programs(t), new(apiServer)
	t.Cleanup(own.stop)
	return own.start(t, bin)
}

// Tests are the tests of a package, for TestMain: it stops the API server that
// they share.
type Tests struct{ M *testing.M }

// Run runs the tests, and returns the code to exit with.
func (t Tests) Run() int {
	shared.stops = true
	defer shared.stop()
	return t.M.Run()
}

// shared is the API server of a test process.
var shared apiServer

// apiServer runs from the first test that takes it.
type apiServer struct {
	stops bool // somebody calls stop

	mu       sync.Mutex // held by the test that has the cluster
	cluster  *Cluster
	dir      string
	programs []*exec.Cmd
}

// take gives the cluster to a test, until that ends.
func (r *apiServer) take(t testing.TB, bin string) *Cluster {
	t.Helper()
	if !r.stops {
		t.Fatal("TestMain has to run kubetest.Tests")
	}
	r.mu.Lock()
	t.Cleanup(func() {
		defer r.mu.Unlock()
		if r.cluster != nil {
			r.cluster.wipe(t)
		}
	})
	if r.cluster == nil {
		r.cluster = r.start(t, bin)
	}
	r.cluster.Kubeconfig = r.cluster.kubeconfig(t, adminToken) // in a directory of this test
	return r.cluster
}

// stop ends what runs.
func (r *apiServer) stop() {
	for _, cmd := range slices.Backward(r.programs) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	if r.dir != "" {
		_ = os.RemoveAll(r.dir)
	}
}

// start runs etcd and kube-apiserver.
func (r *apiServer) start(t testing.TB, bin string) *Cluster {
	t.Helper()
	var err error
	if r.dir, err = os.MkdirTemp("", "kubetest"); err != nil {
		t.Fatal(err)
	}
	dir := r.dir
	etcdURL := "http://" + freeAddress(t)
	peerURL := "http://" + freeAddress(t)
	r.begin(t, filepath.Join(bin, "etcd"),
		"--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL)

	address := freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{url: "https://" + address, Issuer: "https://kubernetes.default.svc.cluster.local"}
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	c.caPEM = writeServing(t, certFile, keyFile)
	accountKey := filepath.Join(dir, "accounts.key")
	writeKey(t, accountKey)
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(adminToken+`,admin,admin,"system:masters"`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said := r.begin(t, filepath.Join(bin, "kube-apiserver"),
		"--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port,
		"--cert-dir="+dir, "--tls-cert-file="+certFile, "--tls-private-key-file="+keyFile,
		"--service-account-issuer="+c.Issuer, "--service-account-key-file="+accountKey, "--service-account-signing-key-file="+accountKey,
		"--token-auth-file="+tokens, "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
		"--disable-admission-plugins=ServiceAccount")
	c.ready(t, said)
	c.grant = c.grantRole
	c.admin(t, adminToken)
	return c
}

// begin runs a program, and returns the file with what it says.
func (r *apiServer) begin(t testing.TB, program string, args ...string) (said string) {
	t.Helper()
	said = filepath.Join(r.dir, filepath.Base(program)+".log")
	out, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // the program has it
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.programs = append(r.programs, cmd)
	return said
}

// freeAddress is one on loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return address
}

// ready waits until the API server says that it is.
func (c *Cluster) ready(t testing.TB, said string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.caPEM)
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		Timeout:   5 * time.Second,
	}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := "nothing"
	for begin := time.Now(); time.Since(begin) < startTimeout; <-tick.C {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url+"/readyz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+adminToken)
		resp, err := client.Do(req)
		if err != nil {
			last = err.Error()
			continue
		}
		_ = resp.Body.Close()
		if last = resp.Status; resp.StatusCode == http.StatusOK {
			return
		}
	}
	text, _ := os.ReadFile(said)
	t.Fatalf("kube-apiserver is not ready after %v: %s\n%s", startTimeout, last, text[max(0, len(text)-4096):])
}

// grantRole makes a service account with a role.
func (c *Cluster) grantRole(t testing.TB, rules []string) string {
	t.Helper()
	name := strings.ToLower(fmt.Sprintf("limited-%x", time.Now().UnixNano()))
	var list []any
	for _, rule := range rules {
		verb, what := ruleParts(rule)
		if strings.HasPrefix(what, "/") {
			list = append(list, map[string]any{"verbs": []any{verb}, "nonResourceURLs": []any{what}})
			continue
		}
		r := resource(what)
		list = append(list, map[string]any{"verbs": []any{verb}, "apiGroups": []any{r.Group}, "resources": []any{r.Resource}})
	}
	c.AddAccount(t, name)
	const group = "rbac.authorization.k8s.io"
	c.Create(t, "clusterroles."+group, map[string]any{"metadata": map[string]any{"name": name}, "rules": list})
	c.Create(t, "clusterrolebindings."+group, map[string]any{
		"metadata": map[string]any{"name": name},
		"roleRef":  map[string]any{"apiGroup": group, "kind": "ClusterRole", "name": name},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": name, "namespace": Namespace}},
	})
	c.awaitRights(t, name, rules[0])
	return c.Token(t, name, "", "")
}

// awaitRights returns when the API server knows what a service account may do:
// it learns that from itself, by a watch.
func (c *Cluster) awaitRights(t testing.TB, account, rule string) {
	t.Helper()
	verb, what := ruleParts(rule)
	r := resource(what)
	spec := map[string]any{
		"user":               "system:serviceaccount:" + Namespace + ":" + account,
		"resourceAttributes": map[string]any{"verb": verb, "resource": r.Resource, "group": r.Group},
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); time.Since(begin) < startTimeout; <-tick.C {
		got, err := c.dynamic.Resource(resource("subjectaccessreviews.authorization.k8s.io")).Create(t.Context(), &unstructured.Unstructured{
			Object: map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec},
		}, metaapi.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if allowed, _, _ := unstructured.NestedBool(got.Object, "status", "allowed"); allowed {
			return
		}
	}
	t.Fatalf("%s is not granted after %v", rule, startTimeout)
}

// writeServing makes a certificate for loopback that is its own authority.
func writeServing(t testing.TB, certFile, keyFile string) []byte {
	t.Helper()
	key := writeKey(t, keyFile)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-apiserver of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(certFile, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// writeKey makes a key, PEM.
func writeKey(t testing.TB, path string) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return key
}
