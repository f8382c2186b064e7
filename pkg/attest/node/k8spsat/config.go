package k8spsat

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Values of the key token_verification.
const (
	byReview = "token_review"
	byKeys   = "oidc"
)

// defaultAudience is the audience of a cluster that names none.
const defaultAudience = "spire-server"

// VerifierConfig is plugin_data of the server.
//
//credence:plugin_data server NodeAttestor k8s_psat
type VerifierConfig struct {
	// Clusters are the clusters whose agents are let in. The name of the
	// section is the cluster's, a part of its agents' SPIFFE IDs.
	Clusters map[string]ClusterConfig `hcl:"clusters"`
}

// ClusterConfig is the section of one cluster.
type ClusterConfig struct {
	// ServiceAccountAllowList are the service accounts whose pods are agents,
	// written namespace:name; required.
	ServiceAccountAllowList []string `hcl:"service_account_allow_list"`
	// Audience are the audiences that a token may be for, one of them is
	// enough. An empty list stands for the API server's own.
	Audience *[]string `hcl:"audience" unset:"spire-server"`
	// KubeConfigFile says how to reach the API server.
	KubeConfigFile string `hcl:"kube_config_file" unset:"the cluster that the server runs in"`
	// AllowedNodeLabelKeys are the labels of nodes that become selectors.
	AllowedNodeLabelKeys []string `hcl:"allowed_node_label_keys"`
	// AllowedPodLabelKeys are the labels of agents' pods that become selectors.
	AllowedPodLabelKeys []string `hcl:"allowed_pod_label_keys"`
	// UsePodUIDForAgentID names agents for their pods in place of their nodes:
	// /spire/agent/k8s_psat/<cluster>/pod/<UID>.
	UsePodUIDForAgentID bool `hcl:"use_pod_uid_for_agent_id"`

	// TokenVerification says who verifies tokens: the API server (token_review)
	// or this server, with the keys of the cluster's issuer (oidc). The pod, its
	// node and its service account are looked up in both.
	TokenVerification string `hcl:"token_verification" unset:"token_review" ours:"true"`
	// Issuer is the claim iss of the cluster's tokens (--service-account-issuer);
	// required with oidc.
	Issuer string `hcl:"issuer" ours:"true"`
	// JWKSURL is where the issuer's keys are, beginning with https://; for oidc.
	JWKSURL string `hcl:"jwks_url" unset:"the API server's /openid/v1/jwks" ours:"true"`
	// JWKSCAPath is a PEM file with the authorities that jwks_url is verified
	// with.
	JWKSCAPath string `hcl:"jwks_ca_path" unset:"the system's" ours:"true"`
}

// Validate reports every problem with its key. It touches no file.
func (c VerifierConfig) Validate() error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(c.Clusters)) {
		bad := func(key, format string, args ...any) {
			problems = append(problems, fmt.Errorf("clusters.%s.%s: %w", name, key, fmt.Errorf(format, args...)))
		}
		if err := spiffeid.ValidatePathSegment(name); err != nil {
			problems = append(problems, fmt.Errorf("clusters.%s: the name is a part of agents' SPIFFE IDs: %w", name, err))
		}
		cluster := c.Clusters[name]
		cluster.validateAccounts(bad)
		cluster.validateVerification(bad)
	}
	return errors.Join(problems...)
}

// CheckFiles says what is wrong with the files that authorities are read from,
// as they are now.
func (c VerifierConfig) CheckFiles() error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(c.Clusters)) {
		cluster := c.Clusters[name]
		if cluster.JWKSURL == "" {
			continue
		}
		if _, err := newHTTPClient(cluster.JWKSCAPath); err != nil {
			problems = append(problems, fmt.Errorf("clusters.%s.%w", name, err))
		}
	}
	return errors.Join(problems...)
}

func (c ClusterConfig) validateAccounts(bad func(key, format string, args ...any)) {
	if len(c.ServiceAccountAllowList) == 0 {
		bad("service_account_allow_list", `is required: name the agents' service accounts, such as ["spire:spire-agent"]`)
	}
	for _, account := range c.ServiceAccountAllowList {
		if namespace, name, ok := strings.Cut(account, ":"); !ok || namespace == "" || name == "" || strings.Contains(name, ":") {
			bad("service_account_allow_list", "%q is not namespace:name", account)
		}
	}
	for _, audience := range c.audiences() {
		if audience == "" {
			bad("audience", "an audience is empty; [] stands for the API server's own")
		}
	}
}

func (c ClusterConfig) validateVerification(bad func(key, format string, args ...any)) {
	how := cmp.Or(c.TokenVerification, byReview)
	switch how {
	case byKeys:
		if c.Issuer == "" {
			bad("issuer", "is required with token_verification = %q: write the API server's --service-account-issuer", byKeys)
		}
		if len(c.audiences()) == 0 {
			bad("audience", "[] cannot be used with token_verification = %q, where no API server says what it stands for; name one", byKeys)
		}
	case byReview:
		for _, key := range [][2]string{{"issuer", c.Issuer}, {"jwks_url", c.JWKSURL}, {"jwks_ca_path", c.JWKSCAPath}} {
			if key[1] != "" {
				bad(key[0], "is for token_verification = %q; set that, or remove the key", byKeys)
			}
		}
	default:
		bad("token_verification", "%q is not known; use %s or %s", how, byReview, byKeys)
	}
	if c.JWKSURL == "" {
		if c.JWKSCAPath != "" && how == byKeys {
			bad("jwks_ca_path", "is for jwks_url, which is not set")
		}
		return
	}
	if u, err := url.Parse(c.JWKSURL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		bad("jwks_url", "is not a URL that begins with https://")
	}
}

// audiences are those that a token may be for; none: the API server's own.
func (c ClusterConfig) audiences() []string {
	if c.Audience == nil {
		return []string{defaultAudience}
	}
	return *c.Audience
}
