package registry

import (
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Agent is an attested node. An Agent that came out of the registry is shared
// and must not be changed.
type Agent struct {
	ID spiffeid.ID
	// AttestationType is the node attestor's name.
	AttestationType string
	Selectors       attest.Selectors
	// Serial (decimal) and NotAfter of the SVID the agent last showed.
	Serial   string
	NotAfter time.Time
	// NextSerial and NextNotAfter are of an SVID issued to it and not yet
	// seen in use; both serials are good until the next is first used (S31).
	NextSerial   string
	NextNotAfter time.Time
	Banned       bool
	CanReattest  bool
	// Version is the agent's own word, from PostStatus or the feed.
	Version string
	// AliasEntryID is the entry that is removed with the agent; may be empty.
	AliasEntryID string
	AttestedAt   time.Time

	// ModRevision is the store's revision of the last write. It is not part
	// of the record.
	ModRevision store.Revision
}

// ExpiresAt is when the last of the agent's SVIDs ends.
func (a *Agent) ExpiresAt() time.Time {
	if a.NextNotAfter.After(a.NotAfter) {
		return a.NextNotAfter
	}
	return a.NotAfter
}

// GoneSince is since when the agent has no SVID, from ExpiresAt or, if that is
// later, from its last attestation on: between that and the SVID it is given for
// it, it is nothing but late.
func (a *Agent) GoneSince() time.Time {
	if end := a.ExpiresAt(); end.After(a.AttestedAt) {
		return end
	}
	return a.AttestedAt
}

// JoinToken lets one agent attest. The token itself is never stored, only its
// SHA-256.
type JoinToken struct {
	ExpiresAt time.Time
	// KeyHash is SHA-256 of the PKIX public key that consumed the token; nil
	// while it is unused.
	KeyHash []byte
	// AliasEntryID is the entry made with the token; may be empty.
	AliasEntryID string
}
