package registry

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/attest"
)

// ToWire is the entry as SPIRE's API shows it, with every field.
func (e *Entry) ToWire() *types.Entry {
	w := &types.Entry{
		Id:             e.ID,
		SpiffeId:       idToWire(e.SPIFFEID),
		ParentId:       idToWire(e.ParentID),
		Selectors:      selectorsToWire(e.Selectors),
		X509SvidTtl:    int32(e.X509SVIDTTL / time.Second),
		JwtSvidTtl:     int32(e.JWTSVIDTTL / time.Second),
		Admin:          e.Admin,
		Downstream:     e.Downstream,
		StoreSvid:      e.StoreSVID,
		DnsNames:       e.DNSNames,
		Hint:           e.Hint,
		ExpiresAt:      unixOf(e.ExpiresAt),
		CreatedAt:      unixOf(e.CreatedAt),
		RevisionNumber: e.RevisionNumber,
	}
	for _, td := range e.FederatesWith {
		w.FederatesWith = append(w.FederatesWith, td.Name())
	}
	if e.Attributes != nil {
		w.AdditionalAttributes = &types.Entry_AdditionalAttributes{
			DisableX509SvidPrefetch: e.Attributes.DisableX509SVIDPrefetch,
			JwtSvidIncludeJti:       e.Attributes.JWTSVIDIncludeJTI,
		}
	}
	return w
}

// EntryFromWire reads an entry of SPIRE's API and holds it against the rules of
// [Entry.Validate]. To update some fields of an entry, set them in its ToWire
// and read that. The error is an [InvalidError].
func EntryFromWire(td spiffeid.TrustDomain, w *types.Entry) (*Entry, error) {
	if w == nil {
		return nil, invalid("entry", "is required")
	}
	e := &Entry{
		ID:             w.GetId(),
		X509SVIDTTL:    time.Duration(w.GetX509SvidTtl()) * time.Second,
		JWTSVIDTTL:     time.Duration(w.GetJwtSvidTtl()) * time.Second,
		Admin:          w.GetAdmin(),
		Downstream:     w.GetDownstream(),
		StoreSVID:      w.GetStoreSvid(),
		DNSNames:       append([]string(nil), w.GetDnsNames()...),
		Hint:           w.GetHint(),
		ExpiresAt:      timeOf(w.GetExpiresAt()),
		CreatedAt:      timeOf(w.GetCreatedAt()),
		RevisionNumber: w.GetRevisionNumber(),
	}
	var err error
	if e.SPIFFEID, err = IDFromWire("spiffe_id", w.GetSpiffeId()); err != nil {
		return nil, err
	}
	if e.ParentID, err = IDFromWire("parent_id", w.GetParentId()); err != nil {
		return nil, err
	}
	if e.Selectors, err = SelectorsFromWire(w.GetSelectors()); err != nil {
		return nil, err
	}
	if e.FederatesWith, err = TrustDomainsFromWire(w.GetFederatesWith()); err != nil {
		return nil, err
	}
	if a := w.GetAdditionalAttributes(); a != nil {
		e.Attributes = &Attributes{
			DisableX509SVIDPrefetch: a.GetDisableX509SvidPrefetch(),
			JWTSVIDIncludeJTI:       a.GetJwtSvidIncludeJti(),
		}
	}
	return e, e.Validate(td)
}

// ToWire is the agent as SPIRE's API shows it, with every field. The serial
// number and expiry are of the SVID the agent last showed.
func (a *Agent) ToWire() *types.Agent {
	return &types.Agent{
		Id:                   idToWire(a.ID),
		AttestationType:      a.AttestationType,
		X509SvidSerialNumber: a.Serial,
		X509SvidExpiresAt:    unixOf(a.NotAfter),
		Selectors:            selectorsToWire(a.Selectors),
		Banned:               a.Banned,
		CanReattest:          a.CanReattest,
		AgentVersion:         a.Version,
	}
}

// SelectorsFromWire reads selectors of SPIRE's API, as a set.
func SelectorsFromWire(in []*types.Selector) (attest.Selectors, error) {
	if len(in) > attest.MaxSelectors {
		return nil, invalid("selectors", "%d selectors, at most %d are allowed", len(in), attest.MaxSelectors)
	}
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]attest.Selector, len(in))
	for i, s := range in {
		out[i] = attest.Selector{Type: s.GetType(), Value: s.GetValue()}
		if err := out[i].Validate(); err != nil {
			return nil, invalid("selectors", "%v", err)
		}
	}
	return attest.NewSelectors(out...), nil
}

// TrustDomainFromWire reads the name of a trust domain, or its SPIFFE ID. The
// error names the rule.
func TrustDomainFromWire(name string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	if err == nil && len(td.Name()) > maxTrustDomain {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain name is %d bytes long, at most %d are allowed", len(td.Name()), maxTrustDomain)
	}
	return td, err
}

// TrustDomainsFromWire reads the names of trust domains, as a set.
func TrustDomainsFromWire(in []string) ([]spiffeid.TrustDomain, error) {
	var out []spiffeid.TrustDomain
	for _, name := range in {
		td, err := TrustDomainFromWire(name)
		if err != nil {
			return nil, invalid("federates_with", "%.64q: %v", name, err)
		}
		out = append(out, td)
	}
	return normalizeDomains(out), nil
}

// IDFromWire reads a SPIFFE ID of SPIRE's API, of any trust domain. The error is
// an [InvalidError] for the field.
func IDFromWire(field string, w *types.SPIFFEID) (spiffeid.ID, error) {
	if w == nil {
		return spiffeid.ID{}, invalid(field, "is required")
	}
	td, err := spiffeid.TrustDomainFromString(w.GetTrustDomain())
	if err != nil {
		return spiffeid.ID{}, invalid(field, "trust domain: %v", err)
	}
	id, err := spiffeid.FromPath(td, w.GetPath())
	if err != nil {
		return spiffeid.ID{}, invalid(field, "%v", err)
	}
	return id, nil
}

func idToWire(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

func selectorsToWire(s attest.Selectors) []*types.Selector {
	// One allocation for all of them: lists are long.
	messages := make([]types.Selector, len(s))
	out := make([]*types.Selector, len(s))
	for i, sel := range s {
		messages[i].Type, messages[i].Value = sel.Type, sel.Value
		out[i] = &messages[i]
	}
	return out
}
