package k8stest

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// Kubelet answers /pods. Its methods may be called concurrently.
type Kubelet struct {
	server *httptest.Server
	// CAPath and TokenPath are files for its clients; without TLS there are none.
	CAPath, TokenPath string
	// ClientCertPath and ClientKeyPath are a certificate it takes in the place of
	// the token.
	ClientCertPath, ClientKeyPath string
	// Port is where it listens, on 127.0.0.1.
	Port int

	mu sync.Mutex
	// guarded by mu:

	pods     []Pod
	status   int
	requests int
	gate     chan struct{} // requests wait for it; nil: they do not
}

// NewKubelet starts one, with TLS and a token or without, that ends with the
// test. Its certificate is for 127.0.0.1 and the names.
func NewKubelet(t testing.TB, secure bool, names ...string) *Kubelet {
	t.Helper()
	k := &Kubelet{}
	k.server = httptest.NewUnstartedServer(http.HandlerFunc(k.serve))
	k.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if secure {
		k.TokenPath = filepath.Join(t.TempDir(), "token")
		write(t, k.TokenPath, kubeletToken)
		var leaf tls.Certificate
		k.CAPath, leaf = authority(t, names...)
		k.ClientCertPath, k.ClientKeyPath = pair(t, leaf)
		k.server.EnableHTTP2 = true
		k.server.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert}
		k.server.StartTLS()
	} else {
		k.server.Start()
	}
	t.Cleanup(func() {
		k.server.CloseClientConnections()
		k.server.Close()
	})
	_, port, err := net.SplitHostPort(k.server.Listener.Addr().String())
	if err == nil {
		k.Port, err = strconv.Atoi(port)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const kubeletToken = "token-of-the-agent"

// SetPods is what it answers from now on.
func (k *Kubelet) SetPods(pods ...Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods = pods
}

// Deny answers with a status; 0: not any more.
func (k *Kubelet) Deny(status int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status = status
}

// Hold lets requests wait until release is called.
func (k *Kubelet) Hold() (release func()) {
	gate := make(chan struct{})
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gate = gate
	return sync.OnceFunc(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		close(gate)
		k.gate = nil
	})
}

// Requests is how many there were.
func (k *Kubelet) Requests() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.requests
}

func (k *Kubelet) serve(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	k.requests++
	gate := k.gate
	k.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch known := r.Header.Get("Authorization") == "Bearer "+kubeletToken || r.TLS != nil && len(r.TLS.PeerCertificates) > 0; {
	case k.status != 0:
		w.WriteHeader(k.status)
		_, _ = io.WriteString(w, "Forbidden (user=system:serviceaccount:identity:agent, verb=get, resource=nodes, subresource(s)=[pods proxy])\n")
	case r.TLS != nil && !known:
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "Unauthorized")
	case r.URL.Path != "/pods":
		w.WriteHeader(http.StatusNotFound)
	default:
		items := []object{}
		for _, p := range k.pods {
			items = append(items, p.object(1))
		}
		send(w, false, object{"kind": "PodList", "apiVersion": "v1", "metadata": object{}, "items": items})
	}
}
