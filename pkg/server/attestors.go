package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/agentpath"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/kubeclient"
)

// verifierEnv is what a node attestor is given beside its own configuration.
type verifierEnv struct {
	// authorities are the trust domain's X.509 authorities at the moment.
	authorities func() []*x509.Certificate
	log         *slog.Logger
}

// openVerifier makes a node attestor and reads the files it needs.
type openVerifier func(verifierEnv) (node.Verifier, error)

// chooseVerifiers reads the sections of the node attestors. A join token lets
// nobody in that an operator did not ask for, so that join_token is always in
// use, as in SPIRE; the others are where the file names them.
func chooseVerifiers(ps config.Plugins, c *choice) (map[string]openVerifier, error) {
	out := map[string]openVerifier{jointoken.Name: openJoinToken}
	var problems []error
	for _, p := range ps.OfType(typeNodeAttestor) {
		read, ok := nodeAttestors[p.Name]
		if !ok {
			continue // Plugins.Check said so.
		}
		open, err := read(p, c)
		problems = append(problems, err)
		out[p.Name] = open
	}
	return out, errors.Join(problems...)
}

func openJoinToken(verifierEnv) (node.Verifier, error) { return jointoken.Verifier{}, nil }

func chooseJoinToken(p config.Plugin, _ *choice) (openVerifier, error) {
	return openJoinToken, p.Decode(&noData{})
}

func chooseX509POP(p config.Plugin, _ *choice) (openVerifier, error) {
	var cfg x509pop.VerifierConfig
	if err := p.Decode(&cfg); err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, p.Wrap(err)
	}
	if cfg.AgentPathTemplate != "" {
		t, err := agentpath.Parse(x509pop.Name, cfg.AgentPathTemplate, x509pop.PathValue)
		if err != nil {
			return nil, p.DataErrorf("agent_path_template", "%w", err)
		}
		if err := t.Check(x509pop.NoValues()); err != nil {
			return nil, p.DataErrorf("agent_path_template", "%w", err)
		}
		cfg.Path = t.Path
	}
	return func(env verifierEnv) (node.Verifier, error) {
		cfg := cfg
		cfg.TrustBundle = env.authorities
		v, err := x509pop.NewVerifier(cfg)
		if err != nil {
			return nil, p.Wrap(err)
		}
		return v, nil
	}, nil
}

func chooseK8sPSAT(p config.Plugin, c *choice) (openVerifier, error) {
	var cfg k8spsat.VerifierConfig
	if err := p.Decode(&cfg); err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, p.Wrap(err)
	}
	c.check(func() error {
		problems := []error{cfg.CheckFiles()}
		for _, name := range slices.Sorted(maps.Keys(cfg.Clusters)) {
			if err := kubeclient.Check(cfg.Clusters[name].KubeConfigFile); err != nil {
				problems = append(problems, fmt.Errorf("clusters.%s.kube_config_file: %w", name, err))
			}
		}
		return p.Wrap(errors.Join(problems...))
	})
	return func(env verifierEnv) (node.Verifier, error) {
		v, err := k8spsat.NewVerifier(cfg, func(c k8spsat.ClusterConfig) k8spsat.Cluster {
			return kubeclient.New(c.KubeConfigFile)
		}, env.log)
		if err != nil {
			return nil, p.Wrap(err)
		}
		return v, nil
	}, nil
}

// openVerifiers makes the node attestors, and notes those that can see nodes go.
func (k *control) openVerifiers(open map[string]openVerifier) (map[string]node.Verifier, error) {
	verifiers := make(map[string]node.Verifier, len(open))
	k.watchers = make(map[string]node.Watcher)
	for name, build := range open {
		v, err := build(verifierEnv{authorities: k.roots.x509Authorities, log: k.log})
		if err != nil {
			return nil, err
		}
		verifiers[name] = v
		if w, ok := v.(node.Watcher); ok {
			k.watchers[name] = w
		}
	}
	return verifiers, nil
}
