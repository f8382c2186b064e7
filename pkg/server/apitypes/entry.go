package apitypes

import (
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/registry"
)

// AllEntryFields is the mask that lets every field through; so does nil.
var AllEntryFields = &types.EntryMask{
	SpiffeId: true, ParentId: true, Selectors: true, X509SvidTtl: true, FederatesWith: true,
	Admin: true, Downstream: true, ExpiresAt: true, DnsNames: true, RevisionNumber: true,
	StoreSvid: true, JwtSvidTtl: true, Hint: true, CreatedAt: true, AdditionalAttributes: true,
}

// Entry is the entry with the fields of the mask (nil: all); its ID is always
// there.
func Entry(e *registry.Entry, mask *types.EntryMask) *types.Entry {
	if mask == nil {
		mask = AllEntryFields
	}
	m := &types.Entry{Id: e.ID}
	if mask.SpiffeId {
		m.SpiffeId = ID(e.SPIFFEID)
	}
	if mask.ParentId {
		m.ParentId = ID(e.ParentID)
	}
	if mask.Selectors {
		m.Selectors = Selectors(e.Selectors)
	}
	if mask.FederatesWith {
		m.FederatesWith = domainNames(e.FederatesWith)
	}
	if mask.DnsNames {
		m.DnsNames = slices.Clone(e.DNSNames)
	}
	if mask.AdditionalAttributes && e.Attributes != nil {
		m.AdditionalAttributes = &types.Entry_AdditionalAttributes{
			DisableX509SvidPrefetch: e.Attributes.DisableX509SVIDPrefetch,
			JwtSvidIncludeJti:       e.Attributes.JWTSVIDIncludeJTI,
		}
	}
	scalars(m, e, mask)
	return m
}

// scalars sets the fields of m that are numbers, booleans and texts.
func scalars(m *types.Entry, e *registry.Entry, mask *types.EntryMask) {
	m.Admin = mask.Admin && e.Admin
	m.Downstream = mask.Downstream && e.Downstream
	m.StoreSvid = mask.StoreSvid && e.StoreSVID
	if mask.X509SvidTtl {
		m.X509SvidTtl = seconds(e.X509SVIDTTL)
	}
	if mask.JwtSvidTtl {
		m.JwtSvidTtl = seconds(e.JWTSVIDTTL)
	}
	if mask.ExpiresAt {
		m.ExpiresAt = unix(e.ExpiresAt)
	}
	if mask.RevisionNumber {
		m.RevisionNumber = e.RevisionNumber
	}
	if mask.Hint {
		m.Hint = e.Hint
	}
	if mask.CreatedAt {
		m.CreatedAt = unix(e.CreatedAt)
	}
}

// ParseEntry reads the fields of the mask (nil: all) over base, which may be
// nil; base itself is not changed. It says what cannot be read; whether the
// entry is allowed is the registry's to say.
func ParseEntry(m *types.Entry, mask *types.EntryMask, base *registry.Entry) (*registry.Entry, error) {
	if mask == nil {
		mask = AllEntryFields
	}
	e := &registry.Entry{}
	if base != nil {
		*e = *base
	}
	if err := parseIdentity(m, mask, e); err != nil {
		return nil, err
	}
	if mask.FederatesWith {
		var err error
		if e.FederatesWith, err = ParseDomains(m.FederatesWith); err != nil {
			return nil, fmt.Errorf("invalid federated trust domain: %w", err)
		}
	}
	if mask.DnsNames {
		e.DNSNames = slices.Clone(m.DnsNames)
	}
	if mask.AdditionalAttributes {
		e.Attributes = nil
		if a := m.AdditionalAttributes; a != nil {
			e.Attributes = &registry.Attributes{
				DisableX509SVIDPrefetch: a.DisableX509SvidPrefetch,
				JWTSVIDIncludeJTI:       a.JwtSvidIncludeJti,
			}
		}
	}
	parseScalars(m, mask, e)
	return e, nil
}

func parseIdentity(m *types.Entry, mask *types.EntryMask, e *registry.Entry) (err error) {
	if mask.ParentId {
		if e.ParentID, err = ParseID(m.ParentId); err != nil {
			return fmt.Errorf("invalid parent ID: %w", err)
		}
	}
	if mask.SpiffeId {
		if e.SPIFFEID, err = ParseID(m.SpiffeId); err != nil {
			return fmt.Errorf("invalid spiffe ID: %w", err)
		}
	}
	if mask.Selectors {
		if e.Selectors, err = ParseSelectors(m.Selectors); err != nil {
			return err
		}
	}
	return nil
}

func parseScalars(m *types.Entry, mask *types.EntryMask, e *registry.Entry) {
	if mask.Admin {
		e.Admin = m.Admin
	}
	if mask.Downstream {
		e.Downstream = m.Downstream
	}
	if mask.StoreSvid {
		e.StoreSVID = m.StoreSvid
	}
	if mask.X509SvidTtl {
		e.X509SVIDTTL = time.Duration(m.X509SvidTtl) * time.Second
	}
	if mask.JwtSvidTtl {
		e.JWTSVIDTTL = time.Duration(m.JwtSvidTtl) * time.Second
	}
	if mask.ExpiresAt {
		e.ExpiresAt = time.Time{}
		if m.ExpiresAt != 0 {
			e.ExpiresAt = time.Unix(m.ExpiresAt, 0).UTC()
		}
	}
	if mask.Hint {
		e.Hint = m.Hint
	}
}

// ParseDomains reads trust domain names, with or without spiffe://.
func ParseDomains(names []string) ([]spiffeid.TrustDomain, error) {
	if len(names) == 0 {
		return nil, nil
	}
	out := make([]spiffeid.TrustDomain, 0, len(names))
	for _, name := range names {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, err
		}
		out = append(out, td)
	}
	return out, nil
}

func domainNames(in []spiffeid.TrustDomain) []string {
	if len(in) == 0 {
		return nil
	}
	out := make([]string, len(in))
	for i, td := range in {
		out[i] = td.Name()
	}
	return out
}

// seconds of a TTL that the registry holds, which fits.
func seconds(d time.Duration) int32 {
	return int32(d / time.Second) //nolint:gosec // registry.Entry.Validate bounds it.
}

// unix is 0 for the zero time.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
