package k8spsat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// maxLookups bounds the attestations of one cluster that ask its API server
	// at the same time; the others wait for their turn.
	maxLookups = 32
	// lookupTimeout bounds what one attestation asks of it.
	lookupTimeout = 20 * time.Second
)

// Verifier checks the tokens of pods. It implements node.Verifier and
// node.Watcher.
type Verifier struct {
	clusters map[string]*cluster
}

var _ node.Watcher = (*Verifier)(nil)

// cluster is one that is configured.
type cluster struct {
	name      string
	api       Cluster
	accounts  []string // namespace:name
	audiences []string
	// issuer and keys verify tokens here; nil keys: the API server does.
	issuer     string
	keys       *keySet
	nodeLabels []string
	podLabels  []string
	byPod      bool
	// turns has one token for each attestation that asks the API server.
	turns chan struct{}
	// unasked is done when it was said that service accounts are not looked up.
	unasked sync.Once
	log     *slog.Logger
}

// NewVerifier returns a verifier for a valid configuration. connect gives the
// API server of a cluster, and connects to nothing before it is used. Of the
// files, the ones with authorities are read, once.
func NewVerifier(c VerifierConfig, connect func(ClusterConfig) Cluster, log *slog.Logger) (*Verifier, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	v := &Verifier{clusters: make(map[string]*cluster, len(c.Clusters))}
	for name, config := range c.Clusters {
		one := &cluster{
			name: name, api: connect(config), accounts: config.ServiceAccountAllowList, audiences: config.audiences(),
			issuer: config.Issuer, nodeLabels: config.AllowedNodeLabelKeys, podLabels: config.AllowedPodLabelKeys,
			byPod: config.UsePodUIDForAgentID, turns: make(chan struct{}, maxLookups), log: log.With(telemetry.Cluster, name),
		}
		if config.TokenVerification == byKeys {
			fetch := one.api.KeySet
			if config.JWKSURL != "" {
				var err error
				if fetch, err = fetchFrom(config.JWKSURL, config.JWKSCAPath); err != nil {
					return nil, fmt.Errorf("clusters.%s.%w", name, err)
				}
			}
			one.keys = newKeySet(fetch)
		}
		v.clusters[name] = one
	}
	return v, nil
}

// Name is node.Verifier.
func (*Verifier) Name() string { return Name }

// Verify is node.Verifier.
func (v *Verifier) Verify(ctx context.Context, a node.Attempt) (node.Result, error) {
	// 1. What is shown, and for which cluster.
	shown, err := parse(a.Payload)
	if err != nil {
		return node.Result{}, err
	}
	c := v.clusters[shown.Cluster]
	if c == nil {
		return node.Result{}, fmt.Errorf("%w: no cluster %.64q is configured; the agent's key cluster and the server's clusters have to agree", node.ErrRefused, shown.Cluster)
	}
	// 2. Nothing is asked for a token that could not be good.
	h, err := c.read(ctx, shown.Token)
	if err != nil {
		return node.Result{}, err
	}
	// 3. Whose is it, and are they there?
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	select {
	case c.turns <- struct{}{}:
		defer func() { <-c.turns }()
	case <-ctx.Done():
		return node.Result{}, fmt.Errorf("waiting for the API server of cluster %q: %w", c.name, ctx.Err())
	}
	if c.keys == nil {
		if h, err = c.review(ctx, shown.Token); err != nil {
			return node.Result{}, err
		}
	}
	pod, machine, err := c.locate(ctx, h)
	if err != nil {
		return node.Result{}, err
	}
	// 4. Who is it then?
	return c.identify(a.TrustDomain, h, pod, machine)
}

// read checks the token as far as that needs no API server: what it claims and,
// with the issuer's keys, its signature.
func (c *cluster) read(ctx context.Context, text string) (holder, error) {
	token, said, err := parseToken(text)
	if err != nil {
		return holder{}, err
	}
	give := ours
	if c.keys == nil {
		give = theirs
	}
	if err := said.check(c.issuer, c.audiences, time.Now(), give); err != nil {
		return holder{}, err
	}
	h, err := said.holder()
	if err != nil {
		return holder{}, err
	}
	if err := c.allow(h); err != nil {
		return holder{}, err
	}
	if c.keys == nil {
		return h, nil
	}
	key, err := c.keys.key(ctx, token.Headers[0].KeyID)
	if err != nil {
		return holder{}, err
	}
	// The claims are read from the same bytes; only now they are true.
	if token.Claims(key, new(claims)) != nil {
		return holder{}, fmt.Errorf("%w: the token's signature is not by the cluster's issuer", node.ErrRefused)
	}
	return h, nil
}

// allow refuses the pods of other service accounts than the agents'.
func (c *cluster) allow(h holder) error {
	if account := h.namespace + ":" + h.account.Name; !slices.Contains(c.accounts, account) {
		return fmt.Errorf("%w: the service account %.256q is not in service_account_allow_list of cluster %q", node.ErrRefused, account, c.name)
	}
	return nil
}

// review has the API server verify the token.
func (c *cluster) review(ctx context.Context, token string) (holder, error) {
	r, err := c.api.Review(ctx, token, c.audiences)
	if err != nil {
		return holder{}, fmt.Errorf("asking cluster %q to review the token: %w", c.name, err)
	}
	if !r.Authenticated {
		return holder{}, fmt.Errorf("%w: cluster %q does not take the token%s", node.ErrRefused, c.name, reason(r.Error, token))
	}
	// An API server that knows nothing of audiences returns none.
	if len(c.audiences) > 0 && !slices.ContainsFunc(c.audiences, func(a string) bool { return slices.Contains(r.Audiences, a) }) {
		return holder{}, fmt.Errorf("%w: cluster %q did not verify the token's audience", node.ErrRefused, c.name)
	}
	h, err := r.holder()
	if err != nil {
		return holder{}, err
	}
	return h, c.allow(h)
}

// maxReason bounds what is repeated of an API server's words, in bytes.
const maxReason = 256

// reason is the API server's, for the log.
func reason(said, token string) string {
	if said == "" || strings.Contains(said, token) {
		return ""
	}
	return ": " + strings.ToValidUTF8(said[:min(len(said), maxReason)], "")
}

// locate looks up what the token is bound to. Names are given again to others,
// so that it is UIDs that have to agree.
func (c *cluster) locate(ctx context.Context, h holder) (Pod, Node, error) {
	refuse := func(why string) (Pod, Node, error) {
		return Pod{}, Node{}, fmt.Errorf("%w: cluster %q: %s", node.ErrRefused, c.name, why)
	}
	pod, err := c.api.Pod(ctx, h.namespace, h.pod.Name)
	switch {
	case errors.Is(err, ErrNotFound):
		return refuse("the token's pod is gone")
	case err != nil:
		return Pod{}, Node{}, fmt.Errorf("asking cluster %q for the agent's pod: %w", c.name, err)
	case pod.UID != h.pod.UID:
		return refuse("the token's pod is gone, and another has its name")
	case pod.ServiceAccount != h.account.Name:
		return refuse("the pod does not run as the token's service account")
	case pod.Ended:
		return refuse("the token's pod has ended")
	case pod.NodeName == "":
		return refuse("the token's pod is on no node")
	case h.node.Name != "" && h.node.Name != pod.NodeName:
		return refuse("the token's pod is on another node than the token says")
	}
	if err := c.checkAccount(ctx, h); err != nil {
		return Pod{}, Node{}, err
	}
	machine, err := c.api.Node(ctx, pod.NodeName)
	switch {
	case errors.Is(err, ErrNotFound):
		return refuse("the pod's node is gone")
	case err != nil:
		return Pod{}, Node{}, fmt.Errorf("asking cluster %q for the agent's node: %w", c.name, err)
	case machine.UID == "":
		return Pod{}, Node{}, fmt.Errorf("asking cluster %q for the agent's node: it has no UID", c.name)
	case h.node.UID != "" && h.node.UID != machine.UID:
		return refuse("the pod's node is gone, and another has its name")
	}
	return pod, machine, nil
}

// checkAccount looks the service account up. A TokenReview has compared its UID,
// so that after one it is enough not to be allowed to.
func (c *cluster) checkAccount(ctx context.Context, h holder) error {
	uid, err := c.api.ServiceAccount(ctx, h.namespace, h.account.Name)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && uid != h.account.UID:
		return fmt.Errorf("%w: cluster %q: the token's service account is gone", node.ErrRefused, c.name)
	case errors.Is(err, ErrForbidden) && c.keys == nil:
		c.unasked.Do(func() {
			c.log.InfoContext(ctx, "service accounts are not looked up beside the TokenReview: the server is not allowed to get them", telemetry.Err, err)
		})
		return nil
	case err != nil:
		return fmt.Errorf("asking cluster %q for the agent's service account: %w", c.name, err)
	}
	return nil
}
