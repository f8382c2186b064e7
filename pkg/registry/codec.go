package registry

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Clone returns a deep copy of the entry.
func (e *Entry) Clone() *Entry {
	c := *e
	c.Selectors = append(attest.Selectors(nil), e.Selectors...)
	c.FederatesWith = append([]spiffeid.TrustDomain(nil), e.FederatesWith...)
	c.DNSNames = append([]string(nil), e.DNSNames...)
	if e.Attributes != nil {
		attributes := *e.Attributes
		c.Attributes = &attributes
	}
	return &c
}

// Clone returns a deep copy of the agent.
func (a *Agent) Clone() *Agent {
	c := *a
	c.Selectors = append(attest.Selectors(nil), a.Selectors...)
	return &c
}

// Clone returns a deep copy of the bundle.
func (b *Bundle) Clone() *Bundle {
	c := *b
	c.X509Authorities = append([]X509Authority(nil), b.X509Authorities...)
	for i := range c.X509Authorities {
		c.X509Authorities[i].DER = append([]byte(nil), c.X509Authorities[i].DER...)
	}
	c.JWTAuthorities = append([]JWTAuthority(nil), b.JWTAuthorities...)
	for i := range c.JWTAuthorities {
		c.JWTAuthorities[i].PKIX = append([]byte(nil), c.JWTAuthorities[i].PKIX...)
	}
	c.WITAuthorities = append([]WITAuthority(nil), b.WITAuthorities...)
	for i := range c.WITAuthorities {
		c.WITAuthorities[i].PKIX = append([]byte(nil), c.WITAuthorities[i].PKIX...)
	}
	return &c
}

// encode is deterministic, so that two records can be compared by their bytes.
func encode(m proto.Message) ([]byte, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding record: %w", err)
	}
	if len(value) > maxRecord {
		return nil, invalid("record", "is %d bytes long, at most %d are allowed", len(value), maxRecord)
	}
	return value, nil
}

func encodeEntry(e *Entry) ([]byte, error) {
	r := &recordv1.Entry{
		SpiffeId:                e.SPIFFEID.String(),
		ParentId:                e.ParentID.String(),
		Selectors:               selectorRecords(e.Selectors),
		X509SvidTtl:             int32(e.X509SVIDTTL / time.Second),
		JwtSvidTtl:              int32(e.JWTSVIDTTL / time.Second),
		DnsNames:                e.DNSNames,
		Admin:                   e.Admin,
		Downstream:              e.Downstream,
		StoreSvid:               e.StoreSVID,
		Hint:                    e.Hint,
		ExpiresAt:               unixOf(e.ExpiresAt),
		RevisionNumber:          e.RevisionNumber,
		CreatedAt:               unixOf(e.CreatedAt),
		HasAdditionalAttributes: e.Attributes != nil,
	}
	for _, td := range e.FederatesWith {
		r.FederatesWith = append(r.FederatesWith, td.Name())
	}
	if e.Attributes != nil {
		r.DisableX509SvidPrefetch = e.Attributes.DisableX509SVIDPrefetch
		r.JwtSvidIncludeJti = e.Attributes.JWTSVIDIncludeJTI
	}
	return encode(r)
}

func selectorRecords(s attest.Selectors) []*recordv1.Selector {
	out := make([]*recordv1.Selector, len(s))
	for i, sel := range s {
		out[i] = &recordv1.Selector{Type: sel.Type, Value: sel.Value}
	}
	return out
}

func encodeAgent(a *Agent) ([]byte, error) {
	return encode(&recordv1.Agent{
		AttestationType: a.AttestationType,
		Selectors:       selectorRecords(a.Selectors),
		Serial:          a.Serial,
		NotAfter:        unixOf(a.NotAfter),
		NextSerial:      a.NextSerial,
		NextNotAfter:    unixOf(a.NextNotAfter),
		Banned:          a.Banned,
		CanReattest:     a.CanReattest,
		AgentVersion:    a.Version,
		AliasEntryId:    a.AliasEntryID,
		AttestedAt:      unixOf(a.AttestedAt),
	})
}

func decodeAgent(td spiffeid.TrustDomain, kv store.KV) (*Agent, error) {
	id, err := agentIDOf(td, kv.Key)
	if err != nil {
		return nil, err
	}
	var r recordv1.Agent
	if err := proto.Unmarshal(kv.Value, &r); err != nil {
		return nil, fmt.Errorf("decoding agent %q: %w", id, err)
	}
	selectors := make([]attest.Selector, len(r.GetSelectors()))
	for i, s := range r.GetSelectors() {
		selectors[i] = attest.Selector{Type: s.GetType(), Value: s.GetValue()}
		if err := selectors[i].Validate(); err != nil {
			return nil, fmt.Errorf("decoding agent %q: %w", id, err)
		}
	}
	a := &Agent{
		ID:              id,
		AttestationType: r.GetAttestationType(),
		Serial:          r.GetSerial(),
		NotAfter:        timeOf(r.GetNotAfter()),
		NextSerial:      r.GetNextSerial(),
		NextNotAfter:    timeOf(r.GetNextNotAfter()),
		Banned:          r.GetBanned(),
		CanReattest:     r.GetCanReattest(),
		Version:         r.GetAgentVersion(),
		AliasEntryID:    r.GetAliasEntryId(),
		AttestedAt:      timeOf(r.GetAttestedAt()),
		ModRevision:     kv.ModRevision,
	}
	if len(selectors) > 0 {
		a.Selectors = attest.NewSelectors(selectors...)
	}
	if a.AttestationType == "" {
		return nil, fmt.Errorf("decoding agent %q: attestation type is missing", id)
	}
	return a, nil
}

func encodeBundle(b *Bundle) ([]byte, error) {
	if err := checkRefreshHint(b.RefreshHint); err != nil {
		return nil, err // It could not be read again.
	}
	r := &recordv1.Bundle{
		RefreshHint:    int64(b.RefreshHint / time.Second),
		SequenceNumber: b.SequenceNumber,
	}
	for _, a := range b.X509Authorities {
		r.X509Authorities = append(r.X509Authorities, &recordv1.X509Authority{Asn1: a.DER, Tainted: a.Tainted})
	}
	for _, a := range b.JWTAuthorities {
		r.JwtAuthorities = append(r.JwtAuthorities, &recordv1.JWTAuthority{
			KeyId: a.KeyID, PublicKey: a.PKIX, ExpiresAt: unixOf(a.ExpiresAt), Tainted: a.Tainted,
		})
	}
	for _, a := range b.WITAuthorities {
		r.WitAuthorities = append(r.WitAuthorities, &recordv1.WITAuthority{
			KeyId: a.KeyID, PublicKey: a.PKIX, ExpiresAt: unixOf(a.ExpiresAt), Tainted: a.Tainted,
		})
	}
	return encode(r)
}

func decodeBundle(kv store.KV) (*Bundle, error) {
	td, err := bundleDomainOf(kv.Key)
	if err != nil {
		return nil, err
	}
	var r recordv1.Bundle
	if err := proto.Unmarshal(kv.Value, &r); err != nil {
		return nil, fmt.Errorf("decoding bundle of %q: %w", td.Name(), err)
	}
	if hint := r.GetRefreshHint(); hint < 0 || hint > int64(maxRefreshHint/time.Second) {
		return nil, fmt.Errorf("decoding bundle of %q: the refresh hint of %d seconds is out of range", td.Name(), hint)
	}
	b := &Bundle{
		TrustDomain:    td,
		RefreshHint:    time.Duration(r.GetRefreshHint()) * time.Second,
		SequenceNumber: r.GetSequenceNumber(),
		ModRevision:    kv.ModRevision,
	}
	for _, a := range r.GetX509Authorities() {
		if len(a.GetAsn1()) == 0 {
			return nil, fmt.Errorf("decoding bundle of %q: an X.509 authority is empty", td.Name())
		}
		b.X509Authorities = append(b.X509Authorities, X509Authority{DER: a.GetAsn1(), Tainted: a.GetTainted()})
	}
	for _, a := range r.GetJwtAuthorities() {
		if a.GetKeyId() == "" || len(a.GetPublicKey()) == 0 {
			return nil, fmt.Errorf("decoding bundle of %q: a JWT authority has no key ID or no key", td.Name())
		}
		b.JWTAuthorities = append(b.JWTAuthorities, JWTAuthority{
			KeyID: a.GetKeyId(), PKIX: a.GetPublicKey(), ExpiresAt: timeOf(a.GetExpiresAt()), Tainted: a.GetTainted(),
		})
	}
	for _, a := range r.GetWitAuthorities() {
		if a.GetKeyId() == "" || len(a.GetPublicKey()) == 0 {
			return nil, fmt.Errorf("decoding bundle of %q: a WIT authority has no key ID or no key", td.Name())
		}
		b.WITAuthorities = append(b.WITAuthorities, WITAuthority{
			KeyID: a.GetKeyId(), PKIX: a.GetPublicKey(), ExpiresAt: timeOf(a.GetExpiresAt()), Tainted: a.GetTainted(),
		})
	}
	return b, nil
}

func encodeRelationship(f *FederationRelationship) ([]byte, error) {
	r := &recordv1.FederationRelationship{BundleEndpointUrl: f.EndpointURL}
	if !f.EndpointSPIFFEID.IsZero() {
		r.EndpointSpiffeId = f.EndpointSPIFFEID.String()
	}
	return encode(r)
}

func decodeRelationship(kv store.KV) (*FederationRelationship, error) {
	td, err := relationshipDomainOf(kv.Key)
	if err != nil {
		return nil, err
	}
	var r recordv1.FederationRelationship
	if err := proto.Unmarshal(kv.Value, &r); err != nil {
		return nil, fmt.Errorf("decoding federation relationship with %q: %w", td.Name(), err)
	}
	f := &FederationRelationship{TrustDomain: td, EndpointURL: r.GetBundleEndpointUrl(), ModRevision: kv.ModRevision}
	if id := r.GetEndpointSpiffeId(); id != "" {
		if f.EndpointSPIFFEID, err = spiffeid.FromString(id); err != nil {
			return nil, fmt.Errorf("decoding federation relationship with %q: endpoint SPIFFE ID: %w", td.Name(), err)
		}
	}
	if f.EndpointURL == "" {
		return nil, fmt.Errorf("decoding federation relationship with %q: the URL of the bundle endpoint is missing", td.Name())
	}
	return f, nil
}

func encodeToken(t *JoinToken) ([]byte, error) {
	return encode(&recordv1.JoinToken{
		ExpiresAt:     unixOf(t.ExpiresAt),
		PublicKeyHash: t.KeyHash,
		AliasEntryId:  t.AliasEntryID,
	})
}

func decodeToken(kv store.KV) (*JoinToken, error) {
	var r recordv1.JoinToken
	if err := proto.Unmarshal(kv.Value, &r); err != nil {
		return nil, fmt.Errorf("decoding join token: %w", err)
	}
	if r.GetExpiresAt() == 0 {
		return nil, fmt.Errorf("decoding join token: expiry is missing")
	}
	return &JoinToken{
		ExpiresAt:    timeOf(r.GetExpiresAt()),
		KeyHash:      r.GetPublicKeyHash(),
		AliasEntryID: r.GetAliasEntryId(),
	}, nil
}

// unixOf and timeOf keep the zero time zero.
func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func timeOf(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}
