package registry

import (
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/svid"
)

// ToWire is the bundle as SPIRE's API shows it, with every field.
func (b *Bundle) ToWire() *types.Bundle {
	w := &types.Bundle{
		TrustDomain:    b.TrustDomain.Name(),
		RefreshHint:    int64(b.RefreshHint / time.Second),
		SequenceNumber: b.SequenceNumber,
	}
	for _, a := range b.X509Authorities {
		w.X509Authorities = append(w.X509Authorities, &types.X509Certificate{Asn1: a.DER, Tainted: a.Tainted})
	}
	for _, a := range b.JWTAuthorities {
		w.JwtAuthorities = append(w.JwtAuthorities, &types.JWTKey{
			PublicKey: a.PKIX, KeyId: a.KeyID, ExpiresAt: unixOf(a.ExpiresAt), Tainted: a.Tainted,
		})
	}
	for _, a := range b.WITAuthorities {
		w.WitAuthorities = append(w.WitAuthorities, &types.WITKey{
			PublicKey: a.PKIX, KeyId: a.KeyID, ExpiresAt: unixOf(a.ExpiresAt), Tainted: a.Tainted,
		})
	}
	return w
}

// BundleFromWire reads a bundle of SPIRE's API and holds it against the rules of
// [Bundle.Validate]. Every authority must parse; a chain of certificates in the
// place of one becomes one authority for each. The error is an [InvalidError].
func BundleFromWire(w *types.Bundle) (*Bundle, error) {
	if w == nil {
		return nil, invalid("bundle", "is required")
	}
	td, err := TrustDomainFromWire(w.GetTrustDomain())
	if err != nil {
		return nil, invalid("trust_domain", "%v", err)
	}
	if w.GetRefreshHint() < 0 || w.GetRefreshHint() > int64(maxRefreshHint/time.Second) {
		return nil, invalid("refresh_hint", "must be between 0 and %d seconds", int64(maxRefreshHint/time.Second))
	}
	b := &Bundle{
		TrustDomain:    td,
		RefreshHint:    time.Duration(w.GetRefreshHint()) * time.Second,
		SequenceNumber: w.GetSequenceNumber(),
	}
	if b.X509Authorities, err = x509FromWire(w.GetX509Authorities()); err != nil {
		return nil, err
	}
	for _, k := range w.GetJwtAuthorities() {
		at, err := keyFromWire("jwt_authorities", k)
		if err != nil {
			return nil, err
		}
		b.JWTAuthorities = append(b.JWTAuthorities, JWTAuthority{KeyID: k.GetKeyId(), PKIX: k.GetPublicKey(), ExpiresAt: at, Tainted: k.GetTainted()})
	}
	for _, k := range w.GetWitAuthorities() {
		at, err := keyFromWire("wit_authorities", k)
		if err != nil {
			return nil, err
		}
		b.WITAuthorities = append(b.WITAuthorities, WITAuthority{KeyID: k.GetKeyId(), PKIX: k.GetPublicKey(), ExpiresAt: at, Tainted: k.GetTainted()})
	}
	return b, b.Validate()
}

// maxRefreshHint keeps hints far from the end of time.Duration.
const maxRefreshHint = 10 * 365 * 24 * time.Hour

func x509FromWire(list []*types.X509Certificate) ([]X509Authority, error) {
	var out []X509Authority
	for _, a := range list {
		certs, err := x509.ParseCertificates(a.GetAsn1())
		if err != nil {
			return nil, invalid("x509_authorities", "unable to parse X.509 authority: %v", err)
		}
		if len(certs) == 0 {
			return nil, invalid("x509_authorities", "an authority is empty")
		}
		for _, cert := range certs {
			out = append(out, X509Authority{DER: cert.Raw, Tainted: a.GetTainted()})
		}
	}
	return out, nil
}

// keyMessage is what the messages of JWT and WIT keys have in common, which is
// everything.
type keyMessage interface {
	GetKeyId() string
	GetPublicKey() []byte
	GetExpiresAt() int64
}

// keyFromWire checks one key and returns when it expires.
func keyFromWire(field string, k keyMessage) (time.Time, error) {
	if k.GetKeyId() == "" {
		return time.Time{}, invalid(field, "missing key ID")
	}
	key, err := x509.ParsePKIXPublicKey(k.GetPublicKey())
	if err != nil {
		return time.Time{}, invalid(field, "key %.64q is not a PKIX public key", k.GetKeyId())
	}
	if err := svid.CheckJWK(key); err != nil {
		return time.Time{}, invalid(field, "key %.64q: %v", k.GetKeyId(), err)
	}
	if at := k.GetExpiresAt(); at < 0 || at > maxExpiry {
		return time.Time{}, invalid(field, "key %.64q: expires_at must be 0 or a time between 1970 and the year 10000", k.GetKeyId())
	}
	return timeOf(k.GetExpiresAt()), nil
}

// ToWire is the relationship as SPIRE's API shows it, with the trust domain's
// bundle if there is one.
func (f *FederationRelationship) ToWire(b *Bundle) *types.FederationRelationship {
	w := &types.FederationRelationship{
		TrustDomain:       f.TrustDomain.Name(),
		BundleEndpointUrl: f.EndpointURL,
	}
	if f.EndpointSPIFFEID.IsZero() {
		w.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
	} else {
		w.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{
			HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: f.EndpointSPIFFEID.String()},
		}
	}
	if b != nil {
		w.TrustDomainBundle = b.ToWire()
	}
	return w
}

// RelationshipFromWire reads a relationship of SPIRE's API, and the bundle that
// came with it, nil for none. The error is an [InvalidError].
func RelationshipFromWire(w *types.FederationRelationship) (*FederationRelationship, *Bundle, error) {
	if w == nil {
		return nil, nil, invalid("federation_relationship", "is required")
	}
	td, err := TrustDomainFromWire(w.GetTrustDomain())
	if err != nil {
		return nil, nil, invalid("trust_domain", "%v", err)
	}
	f := &FederationRelationship{TrustDomain: td, EndpointURL: w.GetBundleEndpointUrl()}
	switch profile := w.GetBundleEndpointProfile().(type) {
	case *types.FederationRelationship_HttpsWeb:
	case *types.FederationRelationship_HttpsSpiffe:
		id := profile.HttpsSpiffe.GetEndpointSpiffeId()
		if f.EndpointSPIFFEID, err = spiffeid.FromString(id); err != nil {
			return nil, nil, invalid("bundle_endpoint_profile", "endpoint SPIFFE ID: %v", err)
		}
	default:
		return nil, nil, invalid("bundle_endpoint_profile", "must be https_web or https_spiffe")
	}
	if err := f.Validate(); err != nil {
		return nil, nil, err
	}
	if w.GetTrustDomainBundle() == nil {
		return f, nil, nil
	}
	b, err := BundleFromWire(w.GetTrustDomainBundle())
	if err != nil {
		return nil, nil, invalid("trust_domain_bundle", "%v", err)
	}
	if b.TrustDomain != td {
		return nil, nil, invalid("trust_domain_bundle", "is of %q, the relationship is with %q", b.TrustDomain.Name(), td.Name())
	}
	return f, b, nil
}
