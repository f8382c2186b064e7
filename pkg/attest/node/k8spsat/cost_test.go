package k8spsat

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/credence-id/credence/pkg/attest/node"
)

// TestS07_NothingIsAskedForGarbage: a token that could not be good costs the
// cluster's API server nothing.
func TestS07_NothingIsAskedForGarbage(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for _, how := range []string{byReview, byKeys} {
		v := s.verifier(t, config(how, nil))
		for name, payload := range hostile(t, s) {
			if _, err := v.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: payload, Challenge: mute}); err == nil {
				t.Errorf("%s: let in", name)
			}
		}
		for _, change := range []func(*claims){
			func(c *claims) { c.Audience = []string{"x"} },
			func(c *claims) { c.Expiry = nil },
			func(c *claims) { c.Subject = "x" },
			func(c *claims) { c.Kubernetes.Pod = named{} },
		} {
			if _, err := show(t, v, s.token(t, change)); err == nil {
				t.Error("a bad token is taken")
			}
		}
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("%d calls of the API server, want none", n)
	}
}

// TestS07_LookupsAreBounded: of many attestations at once, a few ask the API
// server at a time.
func TestS07_LookupsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		slow := &slowCluster{stage: s}
		v := s.verifier(t, config(byReview, nil))
		v.clusters["production"].api = slow
		token := s.token(t, nil)
		var all sync.WaitGroup
		for range 5 * maxLookups {
			all.Go(func() {
				if _, err := show(t, v, token); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if most := slow.most.Load(); most != maxLookups {
			t.Errorf("%d at the same time, want %d", most, maxLookups)
		}
	})
}

type slowCluster struct {
	*stage

	now, most atomic.Int64
}

func (s *slowCluster) Review(ctx context.Context, token string, audiences []string) (Review, error) {
	n := s.now.Add(1)
	defer s.now.Add(-1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	time.Sleep(time.Second) // of the bubble
	return s.stage.Review(ctx, token, audiences)
}

func (s *stage) fetched() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

// TestS07_UnknownKeysAreFetchedRarely: key IDs that strangers make up do not
// have the issuer's keys fetched each time; a key that is new is found.
func TestS07_UnknownKeysAreFetchedRarely(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		v := s.verifier(t, config(byKeys, nil))
		made := func(kid string) string { return sign(t, s.key, kid, jose.ES256, genuine()) }
		for range 100 {
			refused(t, "made up", v, made("x"), "does not have")
		}
		if n := s.fetched(); n != 1 {
			t.Errorf("%d fetches for 100 tokens at once, want 1", n)
		}
		// One with a known key needs none.
		if _, err := show(t, v, made("k1")); err != nil || s.fetched() != 1 {
			t.Errorf("a good token: %v, %d fetches", err, s.fetched())
		}
		// The issuer has a new key, and gives the old one up.
		time.Sleep(fetchPause)
		s.change(func() { s.keySet = keySetOf(t, map[string]any{"k2": s.key.Public()}) })
		if _, err := show(t, v, made("k2")); err != nil || s.fetched() != 2 {
			t.Errorf("a new key: %v, %d fetches", err, s.fetched())
		}
		refused(t, "given up", v, made("k1"), "does not have")
	})
}

// TestKeysAge: keys are fetched again before they are old; if that fails they
// serve for a while, and not for ever.
func TestKeysAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		v := s.verifier(t, config(byKeys, nil))
		try := func() error {
			_, err := show(t, v, s.token(t, nil))
			return err
		}
		if err := try(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(keysFresh)
		s.change(func() { s.failing["keys"] = errors.New("no route") })
		if err := try(); err != nil || s.fetched() != 2 {
			t.Errorf("after %v, with the issuer away: %v, %d fetches", keysFresh, err, s.fetched())
		}
		time.Sleep(keysStale - keysFresh)
		if err := try(); err == nil || errors.Is(err, node.ErrRefused) || !strings.Contains(err.Error(), "no route") {
			t.Errorf("after %v, with the issuer away: %v", keysStale, err)
		}
		s.change(func() { delete(s.failing, "keys") })
		time.Sleep(fetchPause)
		if err := try(); err != nil {
			t.Errorf("with the issuer back: %v", err)
		}
		// A key that was given up is not trusted for longer than keys are fresh.
		s.change(func() { s.keySet = keySetOf(t, map[string]any{"k2": s.key.Public()}) })
		time.Sleep(keysFresh)
		if err := try(); !errors.Is(err, node.ErrRefused) {
			t.Errorf("with a key that was given up: %v", err)
		}
	})
}

// TestKeysForStrangers: whoever makes up a key ID, has the keys fetched and hangs
// up does not keep others from the keys.
func TestKeysForStrangers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		set := keySetOf(t, map[string]any{"good": newKey(t).Public()})
		keys := newKeySet(func(ctx context.Context) ([]byte, error) {
			select {
			case <-time.After(time.Second):
				return set, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		stranger, hangUp := context.WithTimeout(t.Context(), time.Millisecond)
		defer hangUp()
		if _, err := keys.key(stranger, "made up"); err == nil {
			t.Error("a key that the issuer does not have")
		}
		if _, err := keys.key(t.Context(), "good"); err != nil {
			t.Errorf("after a stranger has hung up: %v", err)
		}
	})
}

func TestReadKeys(t *testing.T) {
	t.Parallel()
	key := newKey(t).Public()
	good := string(keySetOf(t, map[string]any{"a": key}))
	one := strings.TrimSuffix(strings.TrimPrefix(good, `{"keys":[`), "]}")
	for name, test := range map[string]struct {
		set  string
		want int // -1: an error
	}{
		"good":             {good, 1},
		"and what is not":  {`{"keys":[{"kty":"new","kid":"b"},7,` + one + `]}`, 1},
		"for encryption":   {`{"keys":[` + strings.Replace(one, `"sig"`, `"enc"`, 1) + `]}`, -1},
		"without an ID":    {`{"keys":[` + strings.Replace(one, `"a"`, `""`, 1) + `]}`, -1},
		"a shared secret":  {`{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}`, -1},
		"one ID twice":     {`{"keys":[` + one + `,` + one + `]}`, -1},
		"none":             {`{"keys":[]}`, -1},
		"another document": {`[1]`, -1},
		"nothing":          {``, -1},
	} {
		got, err := readKeys([]byte(test.set))
		if (err != nil) != (test.want < 0) || err == nil && len(got) != test.want {
			t.Errorf("%s: %d keys, %v", name, len(got), err)
		}
	}
}

// TestKeysByURL: over HTTPS that is verified, without redirects, bounded.
func TestKeysByURL(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	paths := http.NewServeMux()
	paths.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(s.keySet) })
	paths.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) })
	paths.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxKeySet+1)) })
	paths.HandleFunc("/canary", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "canary", http.StatusForbidden) })
	srv := httptest.NewUnstartedServer(paths)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	roots := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/keys": "", "/away": "redirects are not followed", "/huge": "more than", "/canary": "403", "/nowhere": "404"} {
		v := s.verifier(t, config(byKeys, func(c *ClusterConfig) { c.JWKSURL, c.JWKSCAPath = srv.URL+path, roots }))
		_, err := show(t, v, s.token(t, nil))
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if err != nil && errors.Is(err, node.ErrRefused) {
			t.Errorf("%s: the agent is refused for it: %v", path, err)
		}
	}
	systems := config(byKeys, func(c *ClusterConfig) { c.JWKSURL = srv.URL + "/keys" })
	if systems.CheckFiles() == nil { // It has some.
		if _, err := show(t, s.verifier(t, systems), s.token(t, nil)); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("with the system's authorities: %v", err)
		}
	}
	if n := s.fetched(); n != 0 {
		t.Errorf("the API server was asked %d times for keys that are elsewhere", n)
	}
	if _, err := NewVerifier(config(byKeys, func(c *ClusterConfig) { c.JWKSURL, c.JWKSCAPath = srv.URL, srv.URL }), func(ClusterConfig) Cluster { return s }, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("authorities that are not there are taken")
	}
	missing := config(byKeys, func(c *ClusterConfig) { c.JWKSURL, c.JWKSCAPath = srv.URL, srv.URL })
	if err := missing.CheckFiles(); err == nil || !strings.HasPrefix(err.Error(), "clusters.production.jwks_ca_path: ") {
		t.Errorf("of authorities that are not there: %v", err)
	}
}

// TestNoAuthorities: on a system without any, as in an image of nothing but the
// program, a URL alone is refused before it is used. The system's are read once
// in a process, so this one is played again in another.
func TestNoAuthorities(t *testing.T) {
	t.Parallel()
	const again = "K8SPSAT_TEST_NO_AUTHORITIES"
	if os.Getenv(again) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNoAuthorities$")
		cmd.Env = append(os.Environ(), again+"=1", "SSL_CERT_FILE="+filepath.Join(t.TempDir(), "none"), "SSL_CERT_DIR="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	c := config(byKeys, func(c *ClusterConfig) { c.JWKSURL = "https://example.org/keys" })
	if err := c.CheckFiles(); err == nil || !strings.Contains(err.Error(), "jwks_ca_path: this system has no authorities") {
		t.Errorf("Check: %v", err)
	}
	s := newStage(t)
	if _, err := NewVerifier(c, func(ClusterConfig) Cluster { return s }, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("NewVerifier takes it")
	}
}
