package registry

import (
	"errors"
	"fmt"
)

// Sentinel errors, tested with errors.Is. Errors of the store pass through
// wrapped, so that store.ErrUnavailable can be told as well.
var (
	// ErrNotFound is returned for an entry, agent or bundle that is not there.
	ErrNotFound = errors.New("not found")
	// ErrExists is returned when creating an entry whose ID, or whose parent,
	// SPIFFE ID and selectors, another entry has, and a token that is there.
	ErrExists = errors.New("already exists")
	// ErrInvalid is what every [InvalidError] is.
	ErrInvalid = errors.New("invalid")
	// ErrConflict is returned when what a change depends on was changed by
	// others again and again meanwhile; the caller may try again.
	ErrConflict = errors.New("others keep changing the same")
	// ErrBanned is returned when attesting or updating a banned agent.
	ErrBanned = errors.New("agent is banned")
	// ErrEvidenceUsed is returned by AttestAgent for an agent that is there, by
	// a method that trusts on first use only. Deleting the agent lets it in.
	ErrEvidenceUsed = errors.New("attestation data has already been used to attest an agent")
	// ErrTokenRefused is what a client may know of a join token that does not
	// let it in; the three below say why and are for the log.
	ErrTokenRefused = errors.New("join token refused")
	// ErrTokenUnknown: never made, or removed after its expiry.
	ErrTokenUnknown = fmt.Errorf("%w: it does not exist", ErrTokenRefused)
	// ErrTokenExpired: its time to live is over.
	ErrTokenExpired = fmt.Errorf("%w: it has expired", ErrTokenRefused)
	// ErrTokenUsed: another key has used it, or its agent was removed.
	ErrTokenUsed = fmt.Errorf("%w: it was used before", ErrTokenRefused)
	// ErrRunning is returned for a change of what belongs to a server that runs.
	ErrRunning = errors.New("the server that it belongs to is running")
	// ErrTrustDomain is returned by New for a store of another trust domain.
	ErrTrustDomain = errors.New("store belongs to another trust domain")
)

// InvalidError names the field, by its name in SPIRE's API, and the rule it
// breaks. It never quotes a selector's value or a token.
type InvalidError struct {
	Field string
	Rule  string
}

// Error is "field: rule".
func (e *InvalidError) Error() string { return e.Field + ": " + e.Rule }

// Is makes every InvalidError an ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// FederatedError is returned by DeleteBundle with Restrict when entries federate
// with the trust domain.
type FederatedError struct {
	// Entries is how many.
	Entries int
}

// Error is SPIRE's text.
func (e *FederatedError) Error() string {
	return fmt.Sprintf("cannot delete bundle; federated with %d registration entries", e.Entries)
}

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Rule: fmt.Sprintf(format, args...)}
}
