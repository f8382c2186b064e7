package agent

import (
	"context"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// bootstrapping is an agent that has got no further than its bundle.
func bootstrapping(s Section) *Agent {
	s.TrustDomain = testTD.Name()
	c := &Config{Agent: s}
	c.SetDefaults()
	return &Agent{config: c, trust: &trust{td: testTD, news: make(chan struct{}, 1)}}
}

// TestBundleFromAUnixSocket: the helper is told who asks, as SPIRE tells it,
// beside what the URL's query has.
func TestBundleFromAUnixSocket(t *testing.T) {
	t.Parallel()
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newAuthority(t, time.Now().Add(time.Hour)).cert.Raw})
	var queries []url.Values
	answers := []string{"", string(bundle), string(bundle)}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.Query())
		_, _ = w.Write([]byte(answers[len(queries)-1]))
	})}
	socket := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})

	a := bootstrapping(Section{TrustBundleURL: "http://any/path?who=node", TrustBundleUnixSocket: socket, ServerAddress: "10.0.0.1"})
	if _, err := a.bootstrapBundle(t.Context()); err == nil || !strings.Contains(err.Error(), "no trust bundle") {
		t.Errorf("an empty answer: %v", err)
	}
	for range 2 {
		if b, err := a.bootstrapBundle(t.Context()); err != nil || len(b.X509Authorities()) != 1 {
			t.Fatalf("got %v, %v", b, err)
		}
	}
	var modes, attempts []string
	for _, q := range queries {
		modes, attempts = append(modes, q.Get("spire-attest-mode")), append(attempts, q.Get("spire-connection-attempts"))
		if _, err := time.Parse(time.RFC3339, q.Get("spire-attest-start-time")); err != nil {
			t.Errorf("spire-attest-start-time: %v", err)
		}
		for name, want := range map[string]string{
			"who": "node", "spire-server-address": "10.0.0.1", "spire-server-port": "8081", "spiffe-trust-domain": testTD.Name(),
		} {
			if got := q.Get(name); got != want {
				t.Errorf("%s=%s, want %s", name, got, want)
			}
		}
	}
	if diff := cmp.Diff([][]string{{"bootstrap", "bootstrap", "rebootstrap"}, {"1", "2", "1"}}, [][]string{modes, attempts}); diff != "" {
		t.Errorf("modes and attempts (-want +got):\n%s", diff)
	}
}

// TestBundleFromAServerThatIsNotTrusted: what comes over https comes from who
// the machine's roots say it is, and no error repeats the URL, whose query may
// be a secret, or what the server said.
func TestBundleFromAServerThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("s3cr3t-body")) }))
	t.Cleanup(srv.Close)
	a := bootstrapping(Section{TrustBundleURL: srv.URL + "/?token=s3cr3t-query"})
	_, err := a.bootstrapBundle(t.Context())
	if err == nil || !strings.Contains(err.Error(), "agent.trust_bundle_url: ") || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v, want an error about the certificate", err)
	}
	if strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("the error repeats a secret: %v", err)
	}
}

// TestDownloadIsBounded in size, status, redirects and time.
func TestDownloadIsBounded(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	handler := http.NewServeMux()
	handler.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		for range maxBundle/4096 + 1 {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
	handler.HandleFunc("/missing", http.NotFound)
	handler.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	handler.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
	})
	handler.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	socket := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: handler}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		close(stop)
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	for path, want := range map[string]string{
		"/large": "larger than", "/missing": "404", "/loop": "redirects too often", "/away": "redirects too often", "/slow": "deadline",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		s := bootstrapping(Section{TrustBundleURL: "http://any" + path, TrustBundleUnixSocket: socket}).config.Agent
		if _, err := s.download(ctx, asked{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		cancel()
	}
}

// TestBundleFromAnotherAgentThatIsAway is tried again, and not the end.
func TestBundleFromAnotherAgentThatIsAway(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	a := bootstrapping(Section{TrustBundleWorkloadAPI: "unix://" + filepath.Join(t.TempDir(), "none")})
	_, err := a.bootstrapBundle(ctx)
	if err == nil || !strings.HasPrefix(err.Error(), "agent.trust_bundle_spiffe_workload_api: ") {
		t.Errorf("got %v", err)
	}
}
