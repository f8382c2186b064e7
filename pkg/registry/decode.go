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

// decodeEntry turns a record into an entry without the generated message in
// between: a server with a large store is waiting for it to start. It gives an
// error for anything but a whole entry: no half of one is ever returned.
func decodeEntry(kv store.KV) (*Entry, error) {
	e := &Entry{}
	if err := readEntry(e, kv); err != nil {
		return nil, err
	}
	return e, nil
}

// packer turns records into packed entries. It is used by one goroutine.
type packer struct{ scratch Entry }

func (p *packer) entry(kv store.KV) (*Packed, error) {
	e := &p.scratch
	*e = Entry{Selectors: e.Selectors[:0], FederatesWith: e.FederatesWith[:0], DNSNames: e.DNSNames[:0]}
	if err := readEntry(e, kv); err != nil {
		return nil, err
	}
	return e.Pack(), nil
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

// readEntry fills in e, which has nothing but room in its lists.
func readEntry(e *Entry, kv store.KV) error {
	e.ID, e.ModRevision = strings.TrimPrefix(kv.Key, tableEntry), kv.ModRevision
	r := reader{entry: e, value: string(kv.Value)}
	err := r.fields(kv.Value)
	if err == nil {
		err = r.finish()
	}
	if err != nil {
		return fmt.Errorf("decoding entry %q: %w", e.ID, err)
	}
	return nil
}

// reader is the record of one entry being read. The texts of the entry are
// parts of value.
type reader struct {
	entry      *Entry
	value      string
	attributes Attributes
	has        bool // There are attributes.
}

// fields reads b, the bytes of r.value.
func (r *reader) fields(b []byte) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errTruncated
		}
		b = b[n:]
		var err error
		switch typ {
		case protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				r.number(num, v)
			}
		case protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				err = r.text(num, v, part(r.value, len(b)-n, len(v)))
			}
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			err = errTruncated
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// finish checks that nothing an entry must have is missing.
func (r *reader) finish() error {
	e := r.entry
	switch {
	case e.SPIFFEID.IsZero():
		return errors.New("spiffe_id is missing")
	case e.ParentID.IsZero():
		return errors.New("parent_id is missing")
	case len(e.Selectors) == 0:
		return errors.New("selectors are missing")
	}
	if !isSet(e.Selectors) {
		e.Selectors = attest.NewSelectors(e.Selectors...)
	}
	if r.has {
		e.Attributes = &r.attributes
	}
	return nil
}

func (r *reader) number(num protowire.Number, v uint64) {
	e := r.entry
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
		r.has = v != 0
	case fieldDisablePrefetch:
		r.attributes.DisableX509SVIDPrefetch = v != 0
	case fieldIncludeJTI:
		r.attributes.JWTSVIDIncludeJTI = v != 0
	}
}

// part is n bytes of s that end where so many bytes are left.
func part(s string, left, n int) string { return s[len(s)-left-n : len(s)-left] }

// text sets a field that is text or a message, given as bytes and as a part of
// the record's value.
func (r *reader) text(num protowire.Number, b []byte, v string) (err error) {
	e := r.entry
	switch num {
	case fieldSPIFFEID:
		e.SPIFFEID, err = spiffeid.FromString(v)
	case fieldParentID:
		e.ParentID, err = spiffeid.FromString(v)
	case fieldSelectors:
		return r.selector(b, v)
	case fieldFederatesWith:
		var td spiffeid.TrustDomain
		td, err = spiffeid.TrustDomainFromString(v)
		e.FederatesWith = append(e.FederatesWith, td)
	case fieldDNSNames:
		e.DNSNames = append(e.DNSNames, v)
	case fieldHint:
		e.Hint = v
	default:
		return nil
	}
	if err == nil && !utf8.ValidString(v) {
		err = errors.New("text is not UTF-8")
	}
	return err
}

func (r *reader) selector(b []byte, m string) error {
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
				s.Type = part(m, len(b)-n, len(v))
			case num == 2:
				s.Value = part(m, len(b)-n, len(v))
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
	r.entry.Selectors = append(r.entry.Selectors, s)
	return nil
}
