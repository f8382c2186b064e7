package k8spsat

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest/node"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

const issuer = "https://issuer.test"

// stage is a cluster in memory, with one agent: pod agent-1 on node n1.
type stage struct {
	key *ecdsa.PrivateKey

	mu sync.Mutex
	// The rest is guarded by mu.
	pods     map[string]Pod // by namespace/name
	nodes    map[string]Node
	accounts map[string]string
	keySet   []byte
	review   func(*Review) // may change the answer
	failing  map[string]error
	fetches  int

	calls atomic.Int64
	// watches hands over what a watch of nodes is told; each is one watch.
	// podWatches does so for pods, by namespace; guarded by mu.
	watches    chan steps
	podWatches map[string]chan steps
}

var _ Cluster = (*stage)(nil)

func newStage(t testing.TB) *stage {
	t.Helper()
	key := newKey(t)
	return &stage{
		key: key,
		pods: map[string]Pod{"spire/agent-1": {
			UID: "pod-uid-1", ServiceAccount: "agent", NodeName: "n1", HostIP: "192.0.2.7",
			Labels: map[string]string{"tier": "infra", "secret": "x"},
		}},
		nodes:    map[string]Node{"n1": {UID: "node-uid-1", Labels: map[string]string{"zone": "a", "other": "b"}}},
		accounts: map[string]string{"spire/agent": "account-uid-1"},
		keySet:   keySetOf(t, map[string]any{"k1": key.Public()}),
		failing:  make(map[string]error),
		watches:  make(chan steps),
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keySetOf(t testing.TB, keys map[string]any) []byte {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: keys[id], KeyID: id, Use: "sig"})
	}
	data, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// change does something to the cluster.
func (s *stage) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

// genuine are the claims of the agent's token.
func genuine() *claims {
	now := time.Now()
	c := &claims{Claims: jwt.Claims{
		Issuer: issuer, Subject: "system:serviceaccount:spire:agent", Audience: jwt.Audience{"spire-server"},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Hour)),
	}}
	c.Kubernetes.Namespace = "spire"
	c.Kubernetes.ServiceAccount = named{"agent", "account-uid-1"}
	c.Kubernetes.Pod = named{"agent-1", "pod-uid-1"}
	c.Kubernetes.Node = named{"n1", "node-uid-1"}
	return c
}

// sign makes a token.
func sign(t testing.TB, key any, kid string, alg jose.SignatureAlgorithm, c any) string {
	t.Helper()
	with, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(with).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// token is a token of the cluster with these claims.
func (s *stage) token(t testing.TB, change func(*claims)) string {
	t.Helper()
	c := genuine()
	if change != nil {
		change(c)
	}
	return sign(t, s.key, "k1", jose.ES256, c)
}

func payloadOf(t testing.TB, cluster, token string) []byte {
	t.Helper()
	data, err := json.Marshal(evidence{cluster, token})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// config is of a cluster called "production".
func config(how string, change func(*ClusterConfig)) VerifierConfig {
	c := ClusterConfig{
		ServiceAccountAllowList: []string{"spire:agent"}, AllowedNodeLabelKeys: []string{"zone"}, AllowedPodLabelKeys: []string{"tier"},
		TokenVerification: how,
	}
	if how == byKeys {
		c.Issuer = issuer
	}
	if change != nil {
		change(&c)
	}
	return VerifierConfig{Clusters: map[string]ClusterConfig{"production": c}}
}

func (s *stage) verifier(t testing.TB, c VerifierConfig) *Verifier {
	t.Helper()
	v, err := NewVerifier(c, func(ClusterConfig) Cluster { return s }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// show shows a token.
func show(t testing.TB, v *Verifier, token string) (node.Result, error) {
	t.Helper()
	return v.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: payloadOf(t, "production", token), Challenge: mute})
}

func mute(context.Context, []byte) ([]byte, error) { return nil, fmt.Errorf("nothing may be asked") }

// called counts a call, and fails it if the test wants.
func (s *stage) called(what string) error {
	s.calls.Add(1)
	return s.failing[what]
}

func (s *stage) Review(_ context.Context, text string, audiences []string) (Review, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called("review"); err != nil {
		return Review{}, err
	}
	token, err := jwt.ParseSigned(text, algorithms)
	if err != nil {
		return Review{Error: "no token: " + text}, nil
	}
	var c claims
	if token.Claims(s.key.Public(), &c) != nil {
		return Review{Error: "invalid bearer token"}, nil
	}
	k := c.Kubernetes
	r := Review{
		Authenticated: true, Username: c.Subject, UID: k.ServiceAccount.UID,
		Extra: map[string][]string{
			"authentication.kubernetes.io/pod-name": {k.Pod.Name}, "authentication.kubernetes.io/pod-uid": {k.Pod.UID},
			"authentication.kubernetes.io/node-name": {k.Node.Name}, "authentication.kubernetes.io/node-uid": {k.Node.UID},
		},
	}
	for _, a := range audiences {
		if c.Audience.Contains(a) {
			r.Audiences = append(r.Audiences, a)
		}
	}
	if s.review != nil {
		s.review(&r)
	}
	return r, nil
}

func (s *stage) Pod(_ context.Context, namespace, name string) (Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called("pod"); err != nil {
		return Pod{}, err
	}
	p, ok := s.pods[namespace+"/"+name]
	if !ok {
		return Pod{}, fmt.Errorf("pod: %w", ErrNotFound)
	}
	return p, nil
}

func (s *stage) Node(_ context.Context, name string) (Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called("node"); err != nil {
		return Node{}, err
	}
	n, ok := s.nodes[name]
	if !ok {
		return Node{}, fmt.Errorf("node: %w", ErrNotFound)
	}
	return n, nil
}

func (s *stage) ServiceAccount(_ context.Context, namespace, name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.called("account"); err != nil {
		return "", err
	}
	uid, ok := s.accounts[namespace+"/"+name]
	if !ok {
		return "", fmt.Errorf("account: %w", ErrNotFound)
	}
	return uid, nil
}

func (s *stage) KeySet(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches++
	return s.keySet, s.called("keys")
}

func (s *stage) WatchNodes(ctx context.Context, there func(map[string]bool), gone func(string)) error {
	return s.follow(ctx, s.watches, there, gone)
}

func (s *stage) WatchPods(ctx context.Context, namespace string, there func(map[string]bool), gone func(string)) error {
	s.mu.Lock()
	watches := s.podWatches[namespace]
	s.mu.Unlock()
	if watches == nil {
		return fmt.Errorf("pods of %s are not to be watched", namespace)
	}
	return s.follow(ctx, watches, there, gone)
}

func (s *stage) follow(ctx context.Context, watches chan steps, there func(map[string]bool), gone func(string)) error {
	s.mu.Lock()
	err := s.failing["watch"]
	s.mu.Unlock()
	if err != nil {
		return err
	}
	told := make(steps)
	select {
	case watches <- told:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		select {
		case step := <-told:
			if err := step(there, gone); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// uid is of an agent ID's last part.
func lastPart(id spiffeid.ID) string { return id.Path()[strings.LastIndexByte(id.Path(), '/')+1:] }
