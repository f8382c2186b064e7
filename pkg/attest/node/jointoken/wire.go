package jointoken

import (
	"fmt"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Name is the attestation data type on the wire.
const Name = "join_token"

// MaxToken bounds a token, in bytes. Those the server makes are UUIDs.
const MaxToken = 255

// AgentID is the SPIFFE ID of the agent that attests with the token. It returns
// node.ErrMalformed (wrapped) for a token that is not one segment of a SPIFFE
// ID's path; the error does not repeat the token.
func AgentID(td spiffeid.TrustDomain, token string) (spiffeid.ID, error) {
	switch {
	case token == "":
		return spiffeid.ID{}, fmt.Errorf("%w: the join token is empty", node.ErrMalformed)
	case len(token) > MaxToken:
		return spiffeid.ID{}, fmt.Errorf("%w: the join token has %d bytes, at most %d are allowed", node.ErrMalformed, len(token), MaxToken)
	}
	id, err := spiffeid.FromSegments(td, "spire", "agent", Name, token)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: a join token has letters, digits, dots, dashes and underscores only", node.ErrMalformed)
	}
	return id, nil
}
