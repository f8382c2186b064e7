package manifest

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// record is an entry as SPIRE's -data files have it.
type record struct {
	EntryID       string      `json:"entry_id" yaml:"entry_id"`
	ParentID      string      `json:"parent_id" yaml:"parent_id"`
	SPIFFEID      string      `json:"spiffe_id" yaml:"spiffe_id"`
	Selectors     []*selector `json:"selectors" yaml:"selectors"`
	X509SVIDTTL   int32       `json:"x509_svid_ttl" yaml:"x509_svid_ttl"`
	JWTSVIDTTL    int32       `json:"jwt_svid_ttl" yaml:"jwt_svid_ttl"`
	FederatesWith []string    `json:"federates_with" yaml:"federates_with"`
	DNSNames      []string    `json:"dns_names" yaml:"dns_names"`
	Admin         bool        `json:"admin" yaml:"admin"`
	Downstream    bool        `json:"downstream" yaml:"downstream"`
	StoreSVID     bool        `json:"store_svid" yaml:"store_svid"`
	Hint          string      `json:"hint" yaml:"hint"`
	EntryExpiry   int64       `json:"entryExpiry" yaml:"entryExpiry"` // seconds since 1970

	// What a server sets; files that come out of one may have it.
	RevisionNumber int64 `json:"revision_number" yaml:"revision_number"`
	CreatedAt      int64 `json:"created_at" yaml:"created_at"` // seconds since 1970

	AdditionalAttributes *attributes `json:"additional_attributes" yaml:"additional_attributes"`
}

type selector struct {
	Type  string `json:"type" yaml:"type"`
	Value string `json:"value" yaml:"value"`
}

type attributes struct {
	DisableX509SVIDPrefetch bool `json:"disable_x509_svid_prefetch" yaml:"disable_x509_svid_prefetch"`
	JWTSVIDIncludeJTI       bool `json:"jwt_svid_include_jti" yaml:"jwt_svid_include_jti"`
}

// DecodeData reads entries from the JSON text of a -data file: an object whose
// list "entries" has them. name is for error texts. A strict reader refuses
// fields that it does not know; SPIRE's is not strict.
func DecodeData(name string, text []byte, strict bool) ([]*types.Entry, error) {
	if strict {
		records, err := parse(name, text)
		if err != nil {
			return nil, err
		}
		out := make([]*types.Entry, 0, len(records))
		for _, d := range records {
			e, err := d.record.entry()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.at, err)
			}
			out = append(out, e)
		}
		return out, nil
	}
	var file struct {
		Entries []*record `json:"entries"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	out := make([]*types.Entry, 0, len(file.Entries))
	for _, r := range file.Entries {
		e, err := r.entry()
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// entry is the entry that a record says. What is wrong with it is said in
// SPIRE's words.
func (r *record) entry() (*types.Entry, error) {
	if r == nil {
		return nil, errors.New("missing registration entry")
	}
	id, err := spiffeid.FromString(r.SPIFFEID)
	if err != nil {
		return nil, fmt.Errorf("invalid SPIFFE ID: %w", err)
	}
	parent, err := spiffeid.FromString(r.ParentID)
	if err != nil {
		return nil, fmt.Errorf("invalid parent ID: %w", err)
	}
	e := &types.Entry{
		Id: r.EntryID, SpiffeId: wireID(id), ParentId: wireID(parent),
		X509SvidTtl: r.X509SVIDTTL, JwtSvidTtl: r.JWTSVIDTTL, ExpiresAt: r.EntryExpiry,
		Admin: r.Admin, Downstream: r.Downstream, StoreSvid: r.StoreSVID, Hint: r.Hint, DnsNames: r.DNSNames,
		RevisionNumber: r.RevisionNumber, CreatedAt: r.CreatedAt,
	}
	for _, s := range r.Selectors {
		if s == nil {
			return nil, errors.New("missing selector")
		}
		e.Selectors = append(e.Selectors, &types.Selector{Type: s.Type, Value: s.Value})
	}
	for _, name := range r.FederatesWith {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("invalid federated trust domain: %w", err)
		}
		e.FederatesWith = append(e.FederatesWith, td.Name())
	}
	if a := r.AdditionalAttributes; a != nil {
		e.AdditionalAttributes = &types.Entry_AdditionalAttributes{
			DisableX509SvidPrefetch: a.DisableX509SVIDPrefetch, JwtSvidIncludeJti: a.JWTSVIDIncludeJTI,
		}
	}
	return e, nil
}

func wireID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}
