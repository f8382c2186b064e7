package registry

import (
	"time"

	"github.com/credence-id/credence/pkg/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is the authorities of one trust domain. A Bundle that came out of the
// registry is shared and must not be changed.
type Bundle struct {
	TrustDomain     spiffeid.TrustDomain
	X509Authorities []X509Authority
	JWTAuthorities  []JWTAuthority
	// RefreshHint is whole seconds; zero means none.
	RefreshHint    time.Duration
	SequenceNumber uint64

	// ModRevision is the store's revision of the last write. It is not part
	// of the record.
	ModRevision store.Revision
}

// X509Authority is one root certificate, DER.
type X509Authority struct {
	DER     []byte
	Tainted bool
}

// JWTAuthority is one key that verifies JWT-SVIDs. PKIX is its DER-encoded
// SubjectPublicKeyInfo.
type JWTAuthority struct {
	KeyID     string
	PKIX      []byte
	ExpiresAt time.Time
	Tainted   bool
}
