package x509pop

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/credence-id/credence/pkg/attest/node"
)

// Name is the attestation data type on the wire.
const Name = "x509pop"

// nonceSize is the size of both nonces, in bytes.
const nonceSize = 32

// evidence is the payload: DER certificates, leaf first.
type evidence struct {
	Certificates [][]byte `json:"certificates"`
}

// challenge asks for a signature; the member that is set says of what kind the
// key is.
type challenge struct {
	RSA   *nonce `json:"rsa_signature"`
	ECDSA *nonce `json:"ecdsa_signature"`
}

type nonce struct {
	Nonce []byte `json:"nonce"`
}

// response answers a challenge with the agent's own nonce and a signature over
// both.
type response struct {
	RSA   *rsaSignature   `json:"rsa_signature"`
	ECDSA *ecdsaSignature `json:"ecdsa_signature"`
}

// rsaSignature is RSASSA-PSS with SHA-256 (RFC 8017, section 8.1).
type rsaSignature struct {
	Nonce     []byte `json:"nonce"`
	Signature []byte `json:"signature"`
}

// ecdsaSignature is the two numbers of an ECDSA signature, big-endian.
type ecdsaSignature struct {
	Nonce []byte `json:"nonce"`
	R     []byte `json:"r"`
	S     []byte `json:"s"`
}

// parse reads a message. The error does not repeat it.
func parse[T any](message []byte, what string) (*T, error) {
	if len(message) > node.MaxMessage {
		return nil, fmt.Errorf("%w: the %s has %d bytes, at most %d are allowed", node.ErrMalformed, what, len(message), node.MaxMessage)
	}
	out := new(T)
	if err := json.Unmarshal(message, out); err != nil {
		return nil, fmt.Errorf("%w: the %s is not the JSON of x509pop", node.ErrMalformed, what)
	}
	return out, nil
}

func newNonce() ([]byte, error) {
	b := make([]byte, nonceSize)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("making a nonce: %w", err)
	}
	return b, nil
}

// digest is what is signed: SHA-256 of the server's nonce and the agent's.
func digest(servers, agents []byte) ([]byte, error) {
	for _, n := range [][]byte{servers, agents} {
		if len(n) != nonceSize {
			return nil, fmt.Errorf("%w: a nonce has %d bytes instead of %d", node.ErrMalformed, len(n), nonceSize)
		}
	}
	sum := sha256.Sum256(append(append(make([]byte, 0, 2*nonceSize), servers...), agents...))
	return sum[:], nil
}
