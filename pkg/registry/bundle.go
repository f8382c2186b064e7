package registry

import (
	"bytes"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// Bundle is the authorities of one trust domain. A Bundle that came out of the
// registry is shared and must not be changed.
type Bundle struct {
	TrustDomain     spiffeid.TrustDomain
	X509Authorities []X509Authority
	JWTAuthorities  []JWTAuthority
	WITAuthorities  []WITAuthority
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

// WITAuthority is one key that verifies WIT-SVIDs. PKIX is its DER-encoded
// SubjectPublicKeyInfo.
type WITAuthority struct {
	KeyID     string
	PKIX      []byte
	ExpiresAt time.Time
	Tainted   bool
}

// append adds the authorities of add that b does not have. One that it has
// stays as it is, tainted or not: appending neither taints nor heals. It refuses
// a key ID that another key has; who verifies a token finds the key by it.
func (b *Bundle) append(add *Bundle) error {
	for _, a := range add.X509Authorities {
		if !slices.ContainsFunc(b.X509Authorities, func(o X509Authority) bool { return bytes.Equal(o.DER, a.DER) }) {
			b.X509Authorities = append(b.X509Authorities, a)
		}
	}
	for _, a := range add.JWTAuthorities {
		i := slices.IndexFunc(b.JWTAuthorities, func(o JWTAuthority) bool { return o.KeyID == a.KeyID })
		switch {
		case i < 0:
			b.JWTAuthorities = append(b.JWTAuthorities, a)
		case !bytes.Equal(b.JWTAuthorities[i].PKIX, a.PKIX):
			return errTaken("jwt_authorities", a.KeyID)
		}
	}
	for _, a := range add.WITAuthorities {
		i := slices.IndexFunc(b.WITAuthorities, func(o WITAuthority) bool { return o.KeyID == a.KeyID })
		switch {
		case i < 0:
			b.WITAuthorities = append(b.WITAuthorities, a)
		case !bytes.Equal(b.WITAuthorities[i].PKIX, a.PKIX):
			return errTaken("wit_authorities", a.KeyID)
		}
	}
	return b.Validate()
}

func errTaken(field, keyID string) error {
	return invalid(field, "key ID %.64q is that of another key of the bundle", keyID)
}

// size is about what the bundle takes, in bytes; 0 for nil.
func (b *Bundle) size() int {
	if b == nil {
		return 0
	}
	n := 0
	for _, a := range b.X509Authorities {
		n += 16 + len(a.DER)
	}
	for _, a := range b.JWTAuthorities {
		n += 32 + len(a.KeyID) + len(a.PKIX)
	}
	for _, a := range b.WITAuthorities {
		n += 32 + len(a.KeyID) + len(a.PKIX)
	}
	return n
}
