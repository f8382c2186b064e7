package k8spsat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/credence-id/credence/pkg/attest/node"
)

// defaultTokenPath is where the token is projected into the agent's pod.
const defaultTokenPath = "/var/run/secrets/tokens/spire-agent" //nolint:gosec // a path

// ProverConfig is plugin_data of the agent.
//
//credence:plugin_data agent NodeAttestor k8s_psat
type ProverConfig struct {
	// Cluster is the name under which the server knows the agent's cluster;
	// required.
	Cluster string `hcl:"cluster"`
	// TokenPath is the file with the projected service-account token. It is
	// read anew at each attestation.
	TokenPath string `hcl:"token_path" unset:"/var/run/secrets/tokens/spire-agent"`
}

// Validate reports every problem with its key. It touches no file.
func (c ProverConfig) Validate() error {
	if c.Cluster == "" {
		return errors.New("cluster: is required: write the name that the cluster has in the server's k8s_psat")
	}
	return nil
}

// CheckFiles says what is wrong with the token's file, as it is now.
func (c ProverConfig) CheckFiles() error {
	_, err := c.token()
	return err
}

// token reads the file. What it has is in no error.
func (c ProverConfig) token() (string, error) {
	path := c.TokenPath
	if path == "" {
		path = defaultTokenPath
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("token_path: reading the service-account token: %w; the pod needs a volume with a projected serviceAccountToken", err)
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", fmt.Errorf("token_path: %s is empty", path)
	case len(token) > maxToken:
		return "", fmt.Errorf("token_path: %s has %d bytes, a token has at most %d", path, len(token), maxToken)
	}
	return token, nil
}

// Prover shows the token of the agent's pod. It implements node.Prover.
type Prover struct{ config ProverConfig }

var _ node.Prover = (*Prover)(nil)

// NewProver returns a prover for a valid configuration. It reads nothing: the
// token, which Kubernetes renews, is read at each attestation.
func NewProver(c ProverConfig) *Prover { return &Prover{config: c} }

// Name is node.Prover.
func (*Prover) Name() string { return Name }

// Prove is node.Prover. What is wrong with the file is an error of its own and
// not node.ErrRefused: it may be there the next time.
func (p *Prover) Prove(ctx context.Context, c node.Conversation) error {
	token, err := p.config.token()
	if err != nil {
		return err
	}
	payload, err := json.Marshal(evidence{Cluster: p.config.Cluster, Token: token})
	if err != nil {
		return errors.New("encoding the token") // the reason might repeat it
	}
	_, err = c.Challenge(ctx, payload)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return fmt.Errorf("%w: the server asks for more than the token", node.ErrMalformed)
	}
	return err
}
