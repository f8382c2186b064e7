package jointoken

import (
	"context"

	"github.com/credence-id/credence/pkg/attest/node"
)

// Verifier reads the token. It implements node.Verifier.
type Verifier struct{}

var _ node.Verifier = Verifier{}

// Name is node.Verifier.
func (Verifier) Name() string { return Name }

// Verify is node.Verifier. The Result's JoinToken is still to be consumed.
func (Verifier) Verify(_ context.Context, a node.Attempt) (node.Result, error) {
	token := string(a.Payload)
	id, err := AgentID(a.TrustDomain, token)
	if err != nil {
		return node.Result{}, err
	}
	return node.Result{AgentID: id, JoinToken: token}, nil
}
