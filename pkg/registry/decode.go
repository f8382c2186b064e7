package registry

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// decoder turns entry records into entries without the generated message in
// between: a server with a large store is waiting for it to start. Texts that
// repeat from entry to entry (parents, selectors, trust domains) are kept once.
// A decoder is used by one goroutine.
type decoder struct {
	texts   map[string]string
	parents map[string]spiffeid.ID
	domains map[string]spiffeid.TrustDomain

	selectors []attest.Selector // scratch
}

// maxInterned bounds what a decoder remembers; beyond, it starts anew.
const maxInterned = 1 << 16

func newDecoder() *decoder {
	return &decoder{
		texts:   make(map[string]string),
		parents: make(map[string]spiffeid.ID),
		domains: make(map[string]spiffeid.TrustDomain),
	}
}

// Field numbers of record.v1.Entry.
const (
	fieldSPIFFEID        = 1
	fieldParentID        = 2
	fieldSelectors       = 3
	fieldX509SVIDTTL     = 4
	fieldJWTSVIDTTL      = 5
	fieldFederatesWith   = 6
	fieldDNSNames        = 7
	fieldAdmin           = 8
	fieldDownstream      = 9
	fieldStoreSVID       = 10
	fieldHint            = 11
	fieldExpiresAt       = 12
	fieldRevision        = 13
	fieldCreatedAt       = 14
	fieldHasAttributes   = 15
	fieldDisablePrefetch = 16
	fieldIncludeJTI      = 17
)

var errTruncated = errors.New("record is truncated or not an entry")

// entry decodes one record of the table of entries. It gives an error for
// anything but a whole entry: no half of one is ever returned.
func (d *decoder) entry(kv store.KV) (*Entry, error) {
	id := strings.TrimPrefix(kv.Key, tableEntry)
	e := &Entry{ID: id, ModRevision: kv.ModRevision}
	var attributes Attributes
	has := false
	d.selectors = d.selectors[:0]
	for b := kv.Value; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, fmt.Errorf("decoding entry %q: %w", id, errTruncated)
		}
		b = b[n:]
		var err error
		switch typ {
		case protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				has = d.number(e, &attributes, num, v) || has
			}
		case protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				err = d.text(e, num, v)
			}
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			err = errTruncated
		}
		if err != nil {
			return nil, fmt.Errorf("decoding entry %q: %w", id, err)
		}
		b = b[n:]
	}
	if has {
		e.Attributes = &attributes
	}
	if err := d.finish(e); err != nil {
		return nil, fmt.Errorf("decoding entry %q: %w", id, err)
	}
	return e, nil
}

// finish checks that nothing an entry must have is missing.
func (d *decoder) finish(e *Entry) error {
	switch {
	case e.SPIFFEID.IsZero():
		return errors.New("spiffe_id is missing")
	case e.ParentID.IsZero():
		return errors.New("parent_id is missing")
	case len(d.selectors) == 0:
		return errors.New("selectors are missing")
	}
	if isSet(d.selectors) {
		e.Selectors = append(make(attest.Selectors, 0, len(d.selectors)), d.selectors...)
	} else {
		e.Selectors = attest.NewSelectors(d.selectors...)
	}
	return nil
}

// number sets a numeric field. It says whether the field was the one that
// tells that there are attributes.
func (d *decoder) number(e *Entry, a *Attributes, num protowire.Number, v uint64) bool {
	switch num {
	case fieldX509SVIDTTL:
		e.X509SVIDTTL = time.Duration(int32(v)) * time.Second
	case fieldJWTSVIDTTL:
		e.JWTSVIDTTL = time.Duration(int32(v)) * time.Second
	case fieldAdmin:
		e.Admin = v != 0
	case fieldDownstream:
		e.Downstream = v != 0
	case fieldStoreSVID:
		e.StoreSVID = v != 0
	case fieldExpiresAt:
		e.ExpiresAt = timeOf(int64(v))
	case fieldRevision:
		e.RevisionNumber = int64(v)
	case fieldCreatedAt:
		e.CreatedAt = timeOf(int64(v))
	case fieldHasAttributes:
		return v != 0
	case fieldDisablePrefetch:
		a.DisableX509SVIDPrefetch = v != 0
	case fieldIncludeJTI:
		a.JWTSVIDIncludeJTI = v != 0
	}
	return false
}

func (d *decoder) text(e *Entry, num protowire.Number, v []byte) (err error) {
	switch num {
	case fieldSPIFFEID:
		e.SPIFFEID, err = spiffeid.FromString(string(v))
	case fieldParentID:
		e.ParentID, err = d.parent(v)
	case fieldSelectors:
		return d.selector(v)
	case fieldFederatesWith:
		var td spiffeid.TrustDomain
		td, err = d.domain(v)
		e.FederatesWith = append(e.FederatesWith, td)
	case fieldDNSNames:
		e.DNSNames = append(e.DNSNames, string(v))
	case fieldHint:
		e.Hint = d.intern(v)
	default:
		return nil
	}
	if err == nil && !utf8.Valid(v) {
		err = errors.New("text is not UTF-8")
	}
	return err
}

func (d *decoder) selector(b []byte) error {
	var s attest.Selector
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errTruncated
		}
		b = b[n:]
		if typ != protowire.BytesType {
			n = protowire.ConsumeFieldValue(num, typ, b)
		} else {
			var v []byte
			v, n = protowire.ConsumeBytes(b)
			switch {
			case n < 0:
			case num == 1:
				s.Type = d.intern(v)
			case num == 2:
				s.Value = d.intern(v)
			}
		}
		if n < 0 {
			return errTruncated
		}
		b = b[n:]
	}
	if err := s.Validate(); err != nil {
		return err
	}
	d.selectors = append(d.selectors, s)
	return nil
}

// intern returns b as a string, the same one for the same text.
func (d *decoder) intern(b []byte) string {
	if s, ok := d.texts[string(b)]; ok {
		return s
	}
	if len(d.texts) >= maxInterned {
		clear(d.texts)
	}
	s := string(b)
	d.texts[s] = s
	return s
}

func (d *decoder) parent(b []byte) (spiffeid.ID, error) {
	if id, ok := d.parents[string(b)]; ok {
		return id, nil
	}
	id, err := spiffeid.FromString(string(b))
	if err != nil {
		return spiffeid.ID{}, err
	}
	if len(d.parents) >= maxInterned {
		clear(d.parents)
	}
	d.parents[id.String()] = id
	return id, nil
}

func (d *decoder) domain(b []byte) (spiffeid.TrustDomain, error) {
	if td, ok := d.domains[string(b)]; ok {
		return td, nil
	}
	td, err := spiffeid.TrustDomainFromString(string(b))
	if err != nil {
		return spiffeid.TrustDomain{}, err
	}
	if len(d.domains) >= maxInterned {
		clear(d.domains)
	}
	d.domains[td.Name()] = td
	return td, nil
}
