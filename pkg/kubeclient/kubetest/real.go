package kubetest

import (
	"bytes"
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
	"strings"
	"testing"
	"time"
)

// startTimeout bounds the start of the two programs, on a busy machine.
const startTimeout = 2 * time.Minute

// adminToken is the administrator's, of a cluster that is gone after the test.
const adminToken = "test-administrator"

// Start runs etcd and kube-apiserver for one test, which is skipped where they
// are not.
func Start(t testing.TB) *Cluster {
	t.Helper()
	bin, dir := programs(t), t.TempDir()
	etcdURL := "http://" + freeAddress(t)
	peerURL := "http://" + freeAddress(t)
	begin(t, filepath.Join(bin, "etcd"),
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
	begin(t, filepath.Join(bin, "kube-apiserver"),
		"--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port,
		"--cert-dir="+dir, "--tls-cert-file="+certFile, "--tls-private-key-file="+keyFile,
		"--service-account-issuer="+c.Issuer, "--service-account-key-file="+accountKey, "--service-account-signing-key-file="+accountKey,
		"--token-auth-file="+tokens, "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24",
		"--disable-admission-plugins=ServiceAccount")
	c.ready(t)
	c.grant = c.grantRole
	c.admin(t, adminToken)
	return c
}

// begin runs a program until the test ends.
func begin(t testing.TB, program string, args ...string) {
	t.Helper()
	var output bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text := output.String()
			t.Logf("%s said at the end:\n%s", filepath.Base(program), text[max(0, len(text)-4096):])
		}
	})
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
func (c *Cluster) ready(t testing.TB) {
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
	t.Fatalf("kube-apiserver is not ready after %v: %s", startTimeout, last)
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
	return c.Token(t, name, "", "")
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
