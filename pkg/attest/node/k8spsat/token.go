package k8spsat

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/credence-id/credence/pkg/attest/node"
)

// leeway is how long before and after its time a token is taken.
type leeway struct{ before, after time.Duration }

var (
	// ours is for tokens that this server verifies. The clocks may be a little
	// apart, but after its time a token is not taken.
	ours = leeway{before: 30 * time.Second}
	// theirs is for tokens that are shown to the API server, whose clock counts.
	theirs = leeway{before: 5 * time.Minute, after: 5 * time.Minute}
)

// accountPrefix is what the names of service accounts begin with.
const accountPrefix = "system:serviceaccount:"

// algorithms are those that Kubernetes signs service-account tokens with, and
// their kin.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512,
}

// claims are those of a projected service-account token.
type claims struct {
	jwt.Claims
	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount named  `json:"serviceaccount"`
		Pod            named  `json:"pod"`
		Node           named  `json:"node"`
	} `json:"kubernetes.io"`
}

// named is an object that a token is bound to.
type named struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// holder is whom a token was made for.
type holder struct {
	namespace string
	account   named
	pod       named
	// node is empty when the token does not say.
	node named
}

// errOpaque is of what cannot be a token of a pod.
var errOpaque = fmt.Errorf("%w: the token is not a JWT that a cluster signs for its pods", node.ErrMalformed)

// parseToken reads a token, and what it claims, without believing it.
func parseToken(text string) (*jwt.JSONWebToken, *claims, error) {
	token, err := jwt.ParseSigned(text, algorithms)
	if err != nil {
		return nil, nil, errOpaque
	}
	out := new(claims)
	if err := token.UnsafeClaimsWithoutVerification(out); err != nil {
		return nil, nil, errOpaque
	}
	return token, out, nil
}

// check refuses claims that would be no good even if they were true. The issuer
// is any if it is empty, and so are the audiences if there are none.
func (c *claims) check(issuer string, audiences []string, now time.Time, give leeway) error {
	refuse := func(why string) error { return fmt.Errorf("%w: the token %s", node.ErrRefused, why) }
	if c.Expiry == nil || !now.Add(-give.after).Before(c.Expiry.Time()) {
		return refuse("has expired, or has no end")
	}
	err := c.ValidateWithLeeway(jwt.Expected{Issuer: issuer, AnyAudience: audiences, Time: now}, max(give.before, give.after))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrInvalidIssuer):
		return refuse("is of another issuer than the cluster's")
	case errors.Is(err, jwt.ErrInvalidAudience):
		return refuse("is for another audience")
	}
	return refuse("is not valid yet")
}

// holder says whom the token claims to be for.
func (c *claims) holder() (holder, error) {
	k := &c.Kubernetes
	h := holder{namespace: k.Namespace, account: k.ServiceAccount, pod: k.Pod, node: k.Node}
	if c.Subject != accountPrefix+h.namespace+":"+h.account.Name {
		return holder{}, fmt.Errorf("%w: the token's subject is not its service account", node.ErrRefused)
	}
	return h, h.check()
}

// holder says whom the API server has found the token to be for.
func (r *Review) holder() (holder, error) {
	namespace, account, ok := strings.Cut(strings.TrimPrefix(r.Username, accountPrefix), ":")
	if !ok || !strings.HasPrefix(r.Username, accountPrefix) || strings.Contains(account, ":") {
		return holder{}, fmt.Errorf("%w: the token is not of a service account", node.ErrRefused)
	}
	one := func(what string) named {
		return named{Name: r.only(what + "-name"), UID: r.only(what + "-uid")}
	}
	h := holder{namespace: namespace, account: named{Name: account, UID: r.UID}, pod: one("pod"), node: one("node")}
	return h, h.check()
}

// only is the only value of an extra; empty if there are none, or several.
func (r *Review) only(key string) string {
	if v := r.Extra["authentication.kubernetes.io/"+key]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// check refuses a token that is not bound to a pod.
func (h holder) check() error {
	if slices.Contains([]string{h.namespace, h.account.Name, h.account.UID, h.pod.Name, h.pod.UID}, "") {
		return fmt.Errorf("%w: the token is not bound to a pod; the agent's volume has to project a serviceAccountToken", node.ErrRefused)
	}
	return nil
}
