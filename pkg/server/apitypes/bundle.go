package apitypes

import (
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/registry"
)

// AllBundleFields is the mask that lets every field through; so does nil.
var AllBundleFields = &types.BundleMask{
	X509Authorities: true, JwtAuthorities: true, RefreshHint: true, SequenceNumber: true, WitAuthorities: true,
}

// Bundle is the bundle with the fields of the mask (nil: all); the trust
// domain's name is always there. Bytes are shared with b.
func Bundle(b *registry.Bundle, mask *types.BundleMask) *types.Bundle {
	if mask == nil {
		mask = AllBundleFields
	}
	m := &types.Bundle{TrustDomain: b.TrustDomain.Name()}
	if mask.X509Authorities {
		for _, a := range b.X509Authorities {
			m.X509Authorities = append(m.X509Authorities, &types.X509Certificate{Asn1: a.DER, Tainted: a.Tainted})
		}
	}
	if mask.JwtAuthorities {
		for _, a := range b.JWTAuthorities {
			m.JwtAuthorities = append(m.JwtAuthorities, &types.JWTKey{
				PublicKey: a.PKIX, KeyId: a.KeyID, ExpiresAt: unix(a.ExpiresAt), Tainted: a.Tainted,
			})
		}
	}
	if mask.RefreshHint {
		m.RefreshHint = int64(b.RefreshHint.Seconds())
	}
	if mask.SequenceNumber {
		m.SequenceNumber = b.SequenceNumber
	}
	return m
}
