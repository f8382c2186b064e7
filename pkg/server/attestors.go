package server

import (
	"crypto/x509"
	"errors"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/agentpath"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/config"
)

// verifierEnv is what a node attestor is given beside its own configuration.
type verifierEnv struct {
	// authorities are the trust domain's X.509 authorities at the moment.
	authorities func() []*x509.Certificate
}

// openVerifier makes a node attestor and reads the files it needs.
type openVerifier func(verifierEnv) (node.Verifier, error)

// chooseVerifiers reads the sections of the node attestors. A join token lets
// nobody in that an operator did not ask for, so that join_token is always in
// use, as in SPIRE; the others are where the file names them.
func chooseVerifiers(ps config.Plugins) (map[string]openVerifier, error) {
	out := map[string]openVerifier{jointoken.Name: openJoinToken}
	var problems []error
	for _, p := range ps.OfType(typeNodeAttestor) {
		read, ok := nodeAttestors[p.Name]
		if !ok {
			continue // Plugins.Check said so.
		}
		open, err := read(p)
		problems = append(problems, err)
		out[p.Name] = open
	}
	return out, errors.Join(problems...)
}

func openJoinToken(verifierEnv) (node.Verifier, error) { return jointoken.Verifier{}, nil }

func chooseJoinToken(p config.Plugin) (openVerifier, error) {
	return openJoinToken, p.Decode(&noData{})
}

func chooseX509POP(p config.Plugin) (openVerifier, error) {
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
