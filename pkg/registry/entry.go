package registry

import (
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Entry is a registration: which identity a workload with these selectors may
// have, and from which parent. An Entry that came out of the registry is shared
// and must not be changed; clone it first.
type Entry struct {
	// ID is unique in the trust domain. Those the server makes are UUIDv7.
	ID       string
	SPIFFEID spiffeid.ID
	// ParentID is an agent's SPIFFE ID, another entry's, or the server's own
	// for a node alias.
	ParentID  spiffeid.ID
	Selectors attest.Selectors
	// X509SVIDTTL and JWTSVIDTTL are whole seconds; zero means the server's
	// default.
	X509SVIDTTL   time.Duration
	JWTSVIDTTL    time.Duration
	FederatesWith []spiffeid.TrustDomain
	DNSNames      []string
	Admin         bool
	Downstream    bool
	StoreSVID     bool
	Hint          string
	// ExpiresAt, in whole seconds; zero means never.
	ExpiresAt time.Time
	// CreatedAt, in whole seconds.
	CreatedAt time.Time
	// RevisionNumber counts the updates of this entry, as SPIRE does.
	RevisionNumber int64
	// Attributes is nil when the client never set any.
	Attributes *Attributes

	// ModRevision is the store's revision of the last write. It is not part
	// of the record.
	ModRevision store.Revision
}

// Attributes are SPIRE's additional attributes of an entry.
type Attributes struct {
	DisableX509SVIDPrefetch bool
	JWTSVIDIncludeJTI       bool
}

// Expired says whether the entry has an expiry that has come.
func (e *Entry) Expired(now time.Time) bool {
	return !e.ExpiresAt.IsZero() && !now.Before(e.ExpiresAt)
}
