package spiretypes

import (
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// FromID is the message of a SPIFFE ID.
func FromID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// ToID reads a SPIFFE ID. Like SPIRE it takes a trust domain that is written
// as an ID ("spiffe://example.org"), and refuses everything else that is not a
// SPIFFE ID (SPIFFE-ID section 2).
func ToID(m *types.SPIFFEID) (spiffeid.ID, error) {
	if m == nil {
		return spiffeid.ID{}, errors.New("request must specify SPIFFE ID")
	}
	td, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromPath(td, m.GetPath())
}

// FromSelectors is the message of each selector.
func FromSelectors(s attest.Selectors) []*types.Selector {
	if len(s) == 0 {
		return nil
	}
	out := make([]*types.Selector, len(s))
	for i := range s {
		out[i] = &types.Selector{Type: s[i].Type, Value: s[i].Value}
	}
	return out
}

// ToSelectors reads a set of selectors. The error wraps attest.ErrSelector.
func ToSelectors(in []*types.Selector) (attest.Selectors, error) {
	if len(in) > attest.MaxSelectors {
		return nil, fmt.Errorf("%w: %d selectors, at most %d are allowed", attest.ErrSelector, len(in), attest.MaxSelectors)
	}
	out := make([]attest.Selector, 0, len(in))
	for _, m := range in {
		s := attest.Selector{Type: m.GetType(), Value: m.GetValue()}
		if err := s.Validate(); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return attest.NewSelectors(out...), nil
}

// FromEntry is the whole message of an entry.
func FromEntry(e *registry.Entry) *types.Entry {
	m := &types.Entry{
		Id:             e.ID,
		SpiffeId:       FromID(e.SPIFFEID),
		ParentId:       FromID(e.ParentID),
		Selectors:      FromSelectors(e.Selectors),
		X509SvidTtl:    seconds(e.X509SVIDTTL),
		JwtSvidTtl:     seconds(e.JWTSVIDTTL),
		DnsNames:       append([]string(nil), e.DNSNames...),
		Admin:          e.Admin,
		Downstream:     e.Downstream,
		StoreSvid:      e.StoreSVID,
		Hint:           e.Hint,
		ExpiresAt:      unix(e.ExpiresAt),
		CreatedAt:      unix(e.CreatedAt),
		RevisionNumber: e.RevisionNumber,
	}
	for _, td := range e.FederatesWith {
		m.FederatesWith = append(m.FederatesWith, td.Name())
	}
	if a := e.Attributes; a != nil {
		m.AdditionalAttributes = &types.Entry_AdditionalAttributes{
			DisableX509SvidPrefetch: a.DisableX509SVIDPrefetch,
			JwtSvidIncludeJti:       a.JWTSVIDIncludeJTI,
		}
	}
	return m
}

// FromAgent is the whole message of an agent. Like SPIRE's, it shows no serial
// number for an agent that is banned.
func FromAgent(a *registry.Agent) *types.Agent {
	m := &types.Agent{
		Id:                FromID(a.ID),
		AttestationType:   a.AttestationType,
		X509SvidExpiresAt: unix(a.NotAfter),
		Selectors:         FromSelectors(a.Selectors),
		Banned:            a.Banned,
		CanReattest:       a.CanReattest,
		AgentVersion:      a.Version,
	}
	if !a.Banned {
		m.X509SvidSerialNumber = a.Serial
	}
	return m
}

// FromBundle is the whole message of a bundle.
func FromBundle(b *registry.Bundle) *types.Bundle {
	m := &types.Bundle{
		TrustDomain:    b.TrustDomain.Name(),
		RefreshHint:    int64(b.RefreshHint / time.Second),
		SequenceNumber: b.SequenceNumber,
	}
	for _, a := range b.X509Authorities {
		m.X509Authorities = append(m.X509Authorities, &types.X509Certificate{Asn1: a.DER, Tainted: a.Tainted})
	}
	for _, a := range b.JWTAuthorities {
		m.JwtAuthorities = append(m.JwtAuthorities, &types.JWTKey{
			PublicKey: a.PKIX, KeyId: a.KeyID, ExpiresAt: unix(a.ExpiresAt), Tainted: a.Tainted,
		})
	}
	return m
}

func seconds(d time.Duration) int32 {
	return int32(d / time.Second) //nolint:gosec // The registry bounds TTLs to what the field holds.
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
