package k8spsat

import (
	"encoding/json"
	"fmt"

	"github.com/credence-id/credence/pkg/attest/node"
)

// Name is the attestation data type on the wire.
const Name = "k8s_psat"

// maxToken bounds a token, in bytes: one of a pod has about a thousand.
const maxToken = 16 << 10

// evidence is the payload.
type evidence struct {
	Cluster string `json:"cluster"`
	Token   string `json:"token"`
}

// parse reads the payload. The error does not repeat it.
func parse(payload []byte) (*evidence, error) {
	if len(payload) > node.MaxMessage {
		return nil, fmt.Errorf("%w: the payload has %d bytes, at most %d are allowed", node.ErrMalformed, len(payload), node.MaxMessage)
	}
	out := new(evidence)
	if err := json.Unmarshal(payload, out); err != nil {
		return nil, fmt.Errorf("%w: the payload is not the JSON of %s", node.ErrMalformed, Name)
	}
	switch {
	case out.Cluster == "":
		return nil, fmt.Errorf("%w: the payload names no cluster", node.ErrMalformed)
	case out.Token == "":
		return nil, fmt.Errorf("%w: the payload has no token", node.ErrMalformed)
	case len(out.Token) > maxToken:
		return nil, fmt.Errorf("%w: the token has %d bytes, at most %d are allowed", node.ErrMalformed, len(out.Token), maxToken)
	}
	return out, nil
}
