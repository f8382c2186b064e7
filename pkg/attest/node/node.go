package node

import (
	"context"
	"crypto"
	"errors"
	"net/netip"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits on one attestation before the agent is known.
const (
	// MaxMessage bounds one payload or challenge response, in bytes.
	MaxMessage = 64 << 10
	// MaxRounds bounds the challenges of one attestation.
	MaxRounds = 4
)

// Sentinel errors, tested with errors.Is.
var (
	// ErrRefused is wrapped when the evidence is well formed and not good
	// enough: the agent must not try again with it.
	ErrRefused = errors.New("attestation refused")
	// ErrMalformed is wrapped when a message cannot be read.
	ErrMalformed = errors.New("malformed attestation message")
)

// Conversation is the agent's side of the exchange. It is used by one goroutine.
type Conversation interface {
	// Challenge sends the payload (first call) or the answer to the last
	// challenge and returns the next challenge. It returns io.EOF when the
	// server asks for nothing more; the attestation has then succeeded.
	Challenge(ctx context.Context, message []byte) (challenge []byte, err error)
}

// Prover is the agent's half of a method.
type Prover interface {
	// Name is the attestation data type on the wire, such as "join_token".
	Name() string
	// Prove drives the conversation to its end.
	Prove(ctx context.Context, c Conversation) error
}

// Attempt is what the server knows of the agent that wants in.
type Attempt struct {
	// TrustDomain of the server.
	TrustDomain spiffeid.TrustDomain
	// Payload is the agent's first message, at most MaxMessage bytes.
	Payload []byte
	// PublicKey is the key of the agent's CSR, whose signature was checked.
	PublicKey crypto.PublicKey
	// PeerIP is the address the agent comes from; invalid if it is not known.
	PeerIP netip.Addr
	// Challenge sends a challenge and returns the agent's answer, at most
	// MaxMessage bytes, at most MaxRounds times.
	Challenge func(ctx context.Context, challenge []byte) (response []byte, err error)
}

// Result is who the agent was found to be.
type Result struct {
	// AgentID is below /spire/agent/<method>/ of the server's trust domain.
	AgentID spiffeid.ID
	// Selectors of the node, types equal to the method's name.
	Selectors attest.Selectors
	// CanReattest says whether the same evidence may be used again later.
	CanReattest bool
	// JoinToken is set by the join_token method only: the token to consume,
	// in the same store Update that remembers the agent (S03).
	JoinToken string
}

// Verifier is the server's half of a method.
//
// Verify may be called concurrently. It returns ErrMalformed or ErrRefused
// (wrapped) for what the agent did wrong; any other error is the server's. It
// has no effect on what the server remembers: the caller records the Result.
type Verifier interface {
	Name() string
	Verify(ctx context.Context, a Attempt) (Result, error)
}

// Watcher is a Verifier that can tell when the node of an agent is gone.
//
// Watch is called once, and runs until ctx ends; it returns before when there is
// nothing that it could see, and then for good: what it cannot see is no error.
// It removes no agent whose node may still be there.
type Watcher interface {
	Verifier
	Watch(ctx context.Context, agents Agents) error
}

// Agents are the agents of one method that a server remembers. It may be used
// concurrently.
type Agents interface {
	// With lists the agents that have all the selectors and are not banned. It
	// fails when the server cannot know them all at the moment.
	With(ctx context.Context, selectors attest.Selectors) ([]Known, error)
	// Remove forgets an agent, with all that there is of it: it is not served
	// any more, and has to attest. One that is not there is no error. The
	// reason is for the log.
	Remove(ctx context.Context, id spiffeid.ID, reason string) error
}

// Known is an agent that a server remembers.
type Known struct {
	ID        spiffeid.ID
	Selectors attest.Selectors
}
