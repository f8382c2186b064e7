package k8spsat

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest/node"
)

// echo is a verifier that takes the token for the agent's name.
type echo struct{}

func (echo) Name() string { return Name }

func (echo) Verify(_ context.Context, a node.Attempt) (node.Result, error) {
	shown, err := parse(a.Payload)
	if err != nil {
		return node.Result{}, err
	}
	id, err := spiffeid.FromSegments(a.TrustDomain, "spire", "agent", Name, shown.Token)
	return node.Result{AgentID: id}, err
}

// TestS16_TokenIsForOnePlace: a token lets its own pod in, at the cluster and for
// the audience that it was made for, while it holds; whoever verifies it.
func TestS16_TokenIsForOnePlace(t *testing.T) {
	t.Parallel()
	other := newKey(t)
	at := func(d time.Duration) *jwt.NumericDate { return jwt.NewNumericDate(time.Now().Add(d)) }
	for name, test := range map[string]struct {
		change func(*claims)
		why    string
		// theirs: it is the API server that sees to this, in the way review.
		theirs bool
	}{
		"another audience":        {func(c *claims) { c.Audience = jwt.Audience{"vault"} }, "audience", false},
		"no audience":             {func(c *claims) { c.Audience = nil }, "audience", false},
		"expired":                 {func(c *claims) { c.Expiry = at(-time.Hour) }, "expired", false},
		"expired just now":        {func(c *claims) { c.Expiry = at(-time.Second) }, "expired", true},
		"without an end":          {func(c *claims) { c.Expiry = nil }, "expired", false},
		"not valid yet":           {func(c *claims) { c.NotBefore = at(time.Hour) }, "not valid yet", false},
		"not valid for a minute":  {func(c *claims) { c.NotBefore = at(time.Minute) }, "not valid yet", true},
		"made in the future":      {func(c *claims) { c.IssuedAt = at(time.Hour) }, "not valid yet", false},
		"another issuer":          {func(c *claims) { c.Issuer = issuer + "/" }, "issuer", true},
		"no issuer":               {func(c *claims) { c.Issuer = "" }, "issuer", true},
		"another service account": {func(c *claims) { c.Subject, c.Kubernetes.ServiceAccount.Name = accountPrefix+"spire:web", "web" }, "service_account_allow_list", false},
		"another namespace":       {func(c *claims) { c.Subject, c.Kubernetes.Namespace = accountPrefix+"web:agent", "web" }, "service_account_allow_list", false},
		"subject of another":      {func(c *claims) { c.Subject = accountPrefix + "spire:web" }, "subject", false},
		"subject of nobody":       {func(c *claims) { c.Subject = "admin" }, "subject", false},
		"no pod":                  {func(c *claims) { c.Kubernetes.Pod = named{} }, "not bound to a pod", false},
		"no UID of the pod":       {func(c *claims) { c.Kubernetes.Pod.UID = "" }, "not bound to a pod", false},
		"no account UID":          {func(c *claims) { c.Kubernetes.ServiceAccount.UID = "" }, "not bound to a pod", false},
		"another pod's UID":       {func(c *claims) { c.Kubernetes.Pod.UID = "pod-uid-0" }, "another has its name", false},
		"a pod that is gone":      {func(c *claims) { c.Kubernetes.Pod.Name = "agent-0" }, "pod is gone", false},
		"another account's UID":   {func(c *claims) { c.Kubernetes.ServiceAccount.UID = "account-uid-0" }, "service account is gone", false},
		"another node":            {func(c *claims) { c.Kubernetes.Node.Name = "n2" }, "another node", false},
		"another node's UID":      {func(c *claims) { c.Kubernetes.Node.UID = "node-uid-0" }, "another has its name", false},
	} {
		for _, how := range []string{byReview, byKeys} {
			if how == byReview && test.theirs {
				continue
			}
			s := newStage(t)
			refused(t, how+": "+name, s.verifier(t, config(how, nil)), s.token(t, test.change), test.why)
		}
	}
	for _, how := range []string{byReview, byKeys} {
		s := newStage(t)
		v := s.verifier(t, config(how, nil))
		refused(t, how+": another cluster's key", v, sign(t, other, "k1", jose.ES256, genuine()), "")
		refused(t, how+": a shared secret", v, sign(t, []byte(strings.Repeat("x", 64)), "k1", jose.HS256, genuine()), "not a JWT")
		none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"k1"}`))
		refused(t, how+": no signature", v, none+"."+strings.Split(s.token(t, nil), ".")[1]+".", "not a JWT")
		parts := strings.Split(s.token(t, nil), ".")
		refused(t, how+": another's claims", v, strings.Join([]string{parts[0], strings.Split(s.token(t, func(c *claims) { c.ID = "x" }), ".")[1], parts[2]}, "."), "")
	}
	s := newStage(t)
	v := s.verifier(t, config(byKeys, nil))
	refused(t, "no key ID", v, sign(t, s.key, "", jose.ES256, genuine()), "which key")
	refused(t, "unknown key ID", v, sign(t, s.key, "k2", jose.ES256, genuine()), "does not have")
}

// refused wants a refusal for a reason that is in the error, and no more of the
// token there.
func refused(t *testing.T, name string, v *Verifier, token, why string) {
	t.Helper()
	got, err := show(t, v, token)
	switch {
	case err == nil:
		t.Errorf("%s: let in as %v", name, got.AgentID)
	case !errors.Is(err, node.ErrRefused) && !errors.Is(err, node.ErrMalformed):
		t.Errorf("%s: not refused, but %v", name, err)
	case !strings.Contains(err.Error(), why):
		t.Errorf("%s: refused because %v, want %q", name, err, why)
	case strings.Contains(err.Error(), token):
		t.Errorf("%s: the error repeats the token", name)
	}
}

// TestS16_WhatIsGone: a good token lets nobody in whose pod, node or service
// account is not there any more, or is another of the same name.
func TestS16_WhatIsGone(t *testing.T) {
	t.Parallel()
	pod := func(change func(*Pod)) func(*stage) {
		return func(s *stage) {
			p := s.pods["spire/agent-1"]
			change(&p)
			s.pods["spire/agent-1"] = p
		}
	}
	for name, test := range map[string]struct {
		change func(*stage)
		why    string
	}{
		"pod":                {func(s *stage) { delete(s.pods, "spire/agent-1") }, "pod is gone"},
		"pod of another UID": {pod(func(p *Pod) { p.UID = "pod-uid-2" }), "another has its name"},
		"pod that ended":     {pod(func(p *Pod) { p.Ended = true }), "has ended"},
		"pod on no node":     {pod(func(p *Pod) { p.NodeName = "" }), "on no node"},
		"pod elsewhere":      {pod(func(p *Pod) { p.NodeName = "n2" }), "another node"},
		"pod of another":     {pod(func(p *Pod) { p.ServiceAccount = "web" }), "does not run as"},
		"node":               {func(s *stage) { delete(s.nodes, "n1") }, "node is gone"},
		"node of another":    {func(s *stage) { s.nodes["n1"] = Node{UID: "node-uid-2"} }, "another has its name"},
		"account":            {func(s *stage) { delete(s.accounts, "spire/agent") }, "service account is gone"},
		"account of another": {func(s *stage) { s.accounts["spire/agent"] = "account-uid-2" }, "service account is gone"},
	} {
		for _, how := range []string{byReview, byKeys} {
			s := newStage(t)
			v, token := s.verifier(t, config(how, nil)), s.token(t, nil)
			if _, err := show(t, v, token); err != nil {
				t.Fatalf("%s: before: %v", how, err)
			}
			test.change(s)
			refused(t, how+": "+name, v, token, test.why)
		}
	}
}

// TestS16_ReviewIsNotTakenForMore: an API server that says yes to something else
// than the token of a pod lets nobody in.
func TestS16_ReviewIsNotTakenForMore(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*Review)
		why    string
	}{
		"no":                   {func(r *Review) { r.Authenticated, r.Error = false, "expired, it seems" }, "expired, it seems"},
		"no audience":          {func(r *Review) { r.Audiences = nil }, "audience"},
		"another audience":     {func(r *Review) { r.Audiences = []string{"kubernetes"} }, "audience"},
		"a user":               {func(r *Review) { r.Username = "a:b:spire:agent" }, "not of a service account"},
		"a longer name":        {func(r *Review) { r.Username = accountPrefix + "spire:agent:x" }, "not of a service account"},
		"another account":      {func(r *Review) { r.Username = accountPrefix + "spire:web" }, "service_account_allow_list"},
		"no UID":               {func(r *Review) { r.UID = "" }, "not bound to a pod"},
		"no pod":               {func(r *Review) { r.Extra = nil }, "not bound to a pod"},
		"two pods":             {func(r *Review) { r.Extra["authentication.kubernetes.io/pod-uid"] = []string{"a", "pod-uid-1"} }, "not bound to a pod"},
		"another pod":          {func(r *Review) { r.Extra["authentication.kubernetes.io/pod-uid"] = []string{"pod-uid-2"} }, "another has its name"},
		"another node":         {func(r *Review) { r.Extra["authentication.kubernetes.io/node-uid"] = []string{"node-uid-2"} }, "another has its name"},
		"a token in the words": {func(r *Review) { r.Authenticated, r.Error = false, strings.Repeat("x", 1000) }, ""},
	} {
		s := newStage(t)
		s.review = test.change
		refused(t, name, s.verifier(t, config(byReview, nil)), s.token(t, nil), test.why)
	}
}

// TestAPIServerFails: what is the cluster's fault is not the agent's; it may come
// again.
func TestAPIServerFails(t *testing.T) {
	t.Parallel()
	for _, how := range []string{byReview, byKeys} {
		for _, call := range []string{"review", "pod", "node", "account", "keys"} {
			if call == "review" && how == byKeys || call == "keys" && how == byReview {
				continue
			}
			for _, problem := range []error{errors.New("connection refused"), fmt.Errorf("may not: %w", ErrForbidden)} {
				s := newStage(t)
				s.failing[call] = problem
				_, err := show(t, s.verifier(t, config(how, nil)), s.token(t, nil))
				if call == "account" && how == byReview && errors.Is(problem, ErrForbidden) {
					if err != nil { // The TokenReview has looked at it.
						t.Errorf("not allowed to get service accounts: %v", err)
					}
					continue
				}
				if !errors.Is(err, problem) || errors.Is(err, node.ErrRefused) || errors.Is(err, node.ErrMalformed) {
					t.Errorf("%s, %s: %v", how, call, err)
				}
			}
		}
	}
}
