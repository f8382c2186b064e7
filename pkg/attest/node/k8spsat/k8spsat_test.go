package k8spsat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/nodetest"
)

func selectorsOf(values ...string) attest.Selectors {
	var out []attest.Selector
	for _, v := range values {
		out = append(out, attest.Selector{Type: Name, Value: v})
	}
	return attest.NewSelectors(out...)
}

// wanted are the selectors of the stage's agent.
var wanted = selectorsOf(
	"cluster:production", "agent_ns:spire", "agent_sa:agent", "agent_pod_name:agent-1", "agent_pod_uid:pod-uid-1",
	"agent_node_ip:192.0.2.7", "agent_node_name:n1", "agent_node_uid:node-uid-1", "agent_node_label:zone:a", "agent_pod_label:tier:infra",
)

// TestContract runs the suite of node attestors, for both ways to verify.
func TestContract(t *testing.T) {
	t.Parallel()
	for _, how := range []string{byReview, byKeys} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			token := s.token(t, nil)
			nodetest.Run(t, nodetest.Pair{
				Verifier: s.verifier(t, config(how, nil)),
				Prover: func(t *testing.T) node.Prover {
					t.Helper()
					path := filepath.Join(t.TempDir(), "token")
					if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
						t.Fatal(err)
					}
					return NewProver(ProverConfig{Cluster: "production", TokenPath: path})
				},
				Want:    node.Result{Selectors: wanted, CanReattest: true},
				Hostile: hostile(t, s),
				Secrets: []string{token, strings.Split(token, ".")[1], "canary"},
			})
		})
	}
}

// hostile are payloads that must be refused.
func hostile(t testing.TB, s *stage) map[string][]byte {
	t.Helper()
	good := s.token(t, nil)
	return map[string][]byte{
		"no cluster":        []byte(fmt.Sprintf(`{"token":%q}`, good)),
		"no token":          []byte(`{"cluster":"production"}`),
		"another cluster":   payloadOf(t, "staging", good),
		"long cluster":      payloadOf(t, strings.Repeat("x", 60000), "t"),
		"no JWT":            payloadOf(t, "production", "canary"),
		"long token":        payloadOf(t, "production", strings.Repeat("canary.", maxToken/7+1)),
		"token at 16 KiB":   payloadOf(t, "production", strings.Repeat("a", maxToken)),
		"many dots":         payloadOf(t, "production", strings.Repeat(".", maxToken)),
		"deep claims":       payloadOf(t, "production", "eyJhbGciOiJFUzI1NiJ9."+strings.Repeat("W1tb", 4000)+".AA"),
		"token is a number": []byte(`{"cluster":"production","token":7}`),
	}
}

func TestAgentIDs(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for byPod, want := range map[bool]string{
		false: "spiffe://example.org/spire/agent/k8s_psat/production/node-uid-1",
		true:  "spiffe://example.org/spire/agent/k8s_psat/production/pod/pod-uid-1",
	} {
		v := s.verifier(t, config(byReview, func(c *ClusterConfig) { c.UsePodUIDForAgentID = byPod }))
		got, err := show(t, v, s.token(t, nil))
		if err != nil || got.AgentID.String() != want || !got.CanReattest {
			t.Errorf("by pod %v: %v, %v; want %s", byPod, got.AgentID, err, want)
		}
	}
}

// TestS20_UIDIsOnePathSegment: what a cluster calls its nodes is a part of a
// path, or refused.
func TestS20_UIDIsOnePathSegment(t *testing.T) {
	t.Parallel()
	for _, uid := range []string{"a/b", "..", "a%2fb", "ä"} {
		s := newStage(t)
		s.nodes["n1"] = Node{UID: uid}
		token := s.token(t, func(c *claims) { c.Kubernetes.Node = named{} })
		if got, err := show(t, s.verifier(t, config(byKeys, nil)), token); err == nil {
			t.Errorf("UID %q: agent %v", uid, got.AgentID)
		}
	}
}

func TestOldAPIServersSayNoNode(t *testing.T) {
	t.Parallel()
	for _, how := range []string{byReview, byKeys} {
		s := newStage(t)
		got, err := show(t, s.verifier(t, config(how, nil)), s.token(t, func(c *claims) { c.Kubernetes.Node = named{} }))
		if err != nil || lastPart(got.AgentID) != "node-uid-1" {
			t.Errorf("%s: %v, %v", how, got.AgentID, err)
		}
	}
}

// TestAudiences: any of those that are configured will do; an empty list stands
// for the API server's own.
func TestAudiences(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	token := s.token(t, func(c *claims) { c.Audience = []string{"b"} })
	for _, test := range []struct {
		audiences []string
		good      bool
	}{{[]string{"a", "b"}, true}, {[]string{"a"}, false}, {[]string{}, true}} {
		v := s.verifier(t, config(byReview, func(c *ClusterConfig) { c.Audience = &test.audiences }))
		if _, err := show(t, v, token); (err == nil) != test.good {
			t.Errorf("audiences %q: %v", test.audiences, err)
		}
	}
}

func TestProverReadsAnew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	p := NewProver(ProverConfig{Cluster: "c", TokenPath: path})
	if _, err := nodetest.Exchange(t.Context(), p, echo{}, td, nil); err == nil || errors.Is(err, node.ErrRefused) || !strings.Contains(err.Error(), "token_path") {
		t.Errorf("without a file: %v", err)
	}
	for _, token := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := nodetest.Exchange(t.Context(), p, echo{}, td, nil)
		if err != nil || lastPart(got.AgentID) != token {
			t.Errorf("with %s in the file: %v, %v", token, got.AgentID, err)
		}
	}
	for name, content := range map[string]string{"empty": " \n", "too long": strings.Repeat("x", maxToken+1)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := (ProverConfig{Cluster: "c", TokenPath: path}).CheckFiles(); err == nil || !strings.Contains(err.Error(), "token_path") {
			t.Errorf("%s file: %v", name, err)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := config(byKeys, nil).Clusters["production"]
	with := func(change func(*ClusterConfig)) ClusterConfig {
		c := good
		change(&c)
		return c
	}
	for name, test := range map[string]struct {
		cluster string
		config  ClusterConfig
		want    string // in the error; empty: none
	}{
		"good":                {"c", good, ""},
		"review":              {"c", config(byReview, nil).Clusters["production"], ""},
		"name with a slash":   {"a/b", good, "clusters.a/b: the name"},
		"no accounts":         {"c", with(func(c *ClusterConfig) { c.ServiceAccountAllowList = nil }), "clusters.c.service_account_allow_list: is required"},
		"account":             {"c", with(func(c *ClusterConfig) { c.ServiceAccountAllowList = []string{"agent"} }), `"agent" is not namespace:name`},
		"account with more":   {"c", with(func(c *ClusterConfig) { c.ServiceAccountAllowList = []string{"a:b:c"} }), "is not namespace:name"},
		"empty audience":      {"c", with(func(c *ClusterConfig) { c.Audience = &[]string{""} }), "clusters.c.audience: an audience is empty"},
		"no audience":         {"c", with(func(c *ClusterConfig) { c.Audience = &[]string{} }), "clusters.c.audience: [] cannot be used"},
		"way":                 {"c", with(func(c *ClusterConfig) { c.TokenVerification = "jwt" }), `clusters.c.token_verification: "jwt" is not known`},
		"no issuer":           {"c", with(func(c *ClusterConfig) { c.Issuer = "" }), "clusters.c.issuer: is required"},
		"issuer and review":   {"c", with(func(c *ClusterConfig) { c.TokenVerification = "" }), "clusters.c.issuer: is for token_verification"},
		"URL":                 {"c", with(func(c *ClusterConfig) { c.JWKSURL = "https://issuer.test/jwks" }), ""},
		"URL in plain":        {"c", with(func(c *ClusterConfig) { c.JWKSURL = "http://issuer.test/jwks" }), "clusters.c.jwks_url: is not a URL"},
		"URL with password":   {"c", with(func(c *ClusterConfig) { c.JWKSURL = "https://a:canary@issuer.test" }), "clusters.c.jwks_url"},
		"authorities, no URL": {"c", with(func(c *ClusterConfig) { c.JWKSCAPath = "x" }), "clusters.c.jwks_ca_path: is for jwks_url"},
	} {
		err := VerifierConfig{Clusters: map[string]ClusterConfig{test.cluster: test.config}}.Validate()
		switch {
		case test.want == "" && err != nil, test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", name, err, test.want)
		case err != nil && strings.Contains(err.Error(), "canary"):
			t.Errorf("%s: the error repeats a secret: %v", name, err)
		}
	}
	if err := (ProverConfig{}).Validate(); err == nil || !strings.Contains(err.Error(), "cluster: is required") {
		t.Errorf("an agent without a cluster: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	s := newStage(f)
	for _, payload := range hostile(f, s) {
		f.Add(payload)
	}
	good := payloadOf(f, "production", s.token(f, nil))
	f.Add(good)
	verifiers := []*Verifier{s.verifier(f, config(byReview, nil)), s.verifier(f, config(byKeys, nil))}
	want := spiffeid.RequireFromString("spiffe://example.org/spire/agent/k8s_psat/production/node-uid-1")
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, v := range verifiers {
			got, err := v.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: payload, Challenge: mute})
			switch {
			case err == nil && cmp.Diff(want, got.AgentID, cmp.AllowUnexported(spiffeid.ID{})) != "":
				t.Errorf("an agent %v", got.AgentID)
			case err != nil && !errors.Is(err, node.ErrMalformed) && !errors.Is(err, node.ErrRefused):
				t.Errorf("not the agent's: %v", err)
			}
		}
	})
}
