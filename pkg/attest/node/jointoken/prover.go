package jointoken

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/attest/node"
)

// Prover shows the token. It implements node.Prover.
type Prover struct{ token string }

var _ node.Prover = (*Prover)(nil)

// ErrNoToken is returned by Prove without a token: nothing was asked of the
// server.
var ErrNoToken = errors.New("no join token is configured: make one with `credence-server token generate` and set agent.join_token, or run with -joinToken")

// NewProver returns the prover for a token. An empty one is for an agent that
// has an SVID already: only Prove returns [ErrNoToken].
func NewProver(token string) *Prover { return &Prover{token: token} }

// Name is node.Prover.
func (*Prover) Name() string { return Name }

// Prove is node.Prover.
func (p *Prover) Prove(ctx context.Context, c node.Conversation) error {
	if p.token == "" {
		return ErrNoToken
	}
	_, err := c.Challenge(ctx, []byte(p.token))
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%w: the server asks for more than the join token", node.ErrMalformed)
	}
	return err
}
