package registry

import (
	"iter"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
)

// Packed is an entry as the tables in memory keep it: the encoded message in
// which SPIRE's API and the feed send it, once for all of them. A server holds
// as many as there are entries, and a garbage collector sees one pointer in
// each. It is made by [Entry.Pack], never changes, and is shared.
//
// What its methods return are parts of the one text, not copies of it.
type Packed struct {
	// wire is a spire.api.types.Entry. Its ID, SPIFFE ID and parent ID come
	// first, in this order, also if they are empty; the expiry, if there is
	// one, comes next. The rest has no order that matters.
	wire string
	mod  store.Revision
}

// ID of the entry.
func (p *Packed) ID() string {
	id, _ := cutText(p.wire[1:])
	return id
}

// ModRevision is the store's revision of the entry's last write.
func (p *Packed) ModRevision() store.Revision { return p.mod }

// Wire is the entry as an encoded spire.api.types.Entry, with every field.
func (p *Packed) Wire() string { return p.wire }

// names are the encoded SPIFFE ID and parent ID, and what comes after them.
func (p *Packed) names() (spiffe, parent, rest string) {
	_, rest = cutText(p.wire[1:])
	spiffe, rest = cutText(rest[1:])
	parent, rest = cutText(rest[1:])
	return spiffe, parent, rest
}

// SPIFFEID is the entry's, as the name of its trust domain and its path.
func (p *Packed) SPIFFEID() (trustDomain, path string) {
	id, _, _ := p.names()
	return cutName(id)
}

// ParentID is the entry's, as the name of its trust domain and its path.
func (p *Packed) ParentID() (trustDomain, path string) {
	_, id, _ := p.names()
	return cutName(id)
}

// IsAlias says whether the entry maps nodes to a SPIFFE ID rather than a
// workload: its parent is the server.
func (p *Packed) IsAlias() bool {
	_, path := p.ParentID()
	return path == serverPath
}

// Expires says whether the entry has an expiry.
func (p *Packed) Expires() bool { return p.expiry() != 0 }

// expiry in Unix seconds; 0 means none.
func (p *Packed) expiry() int64 {
	_, _, rest := p.names()
	if rest == "" || rest[0] != wireExpiresAt<<3|byte(protowire.VarintType) {
		return 0
	}
	at, _ := cutNumber(rest[1:])
	return int64(at)
}

// Expired says whether the entry has an expiry that has come.
func (p *Packed) Expired(now time.Time) bool {
	at := p.expiry()
	return at != 0 && !now.Before(timeOf(at))
}

// Federates says whether the entry federates with a trust domain.
func (p *Packed) Federates() bool {
	for f := range p.fields() {
		if f.num == wireFederatesWith {
			return true
		}
	}
	return false
}

// FederatesWith are the trust domains that the entry federates with.
func (p *Packed) FederatesWith() []spiffeid.TrustDomain {
	var out []spiffeid.TrustDomain
	for f := range p.fields() {
		if f.num == wireFederatesWith {
			out = append(out, domainFrom(f.text))
		}
	}
	return out
}

// Selectors of the entry, a sorted set.
func (p *Packed) Selectors() attest.Selectors { return p.appendSelectors(nil) }

func (p *Packed) appendSelectors(out attest.Selectors) attest.Selectors {
	for f := range p.fields() {
		if f.num == wireSelectors {
			out = append(out, f.selector())
		}
	}
	return out
}

// Versions are the revision number that SPIRE's clients compare and when the
// entry was created, in Unix seconds.
func (p *Packed) Versions() (revisionNumber, createdAt int64) {
	for f := range p.fields() {
		switch f.num {
		case wireRevisionNumber:
			revisionNumber = int64(f.number)
		case wireCreatedAt:
			createdAt = int64(f.number)
		}
	}
	return revisionNumber, createdAt
}

// Fields are the parts that Wire consists of, tags included, each with the
// number of its field.
func (p *Packed) Fields() iter.Seq2[protowire.Number, string] {
	return func(yield func(protowire.Number, string) bool) {
		begin := 0
		for f := range fieldsOf(p.wire) {
			if !yield(f.num, p.wire[begin:f.end]) {
				return
			}
			begin = f.end
		}
	}
}

// SameEdge says whether both entries have the same SPIFFE ID and parent.
func (p *Packed) SameEdge(o *Packed) bool {
	a, b, _ := p.names()
	c, d, _ := o.names()
	return a == c && b == d
}

// SameExpiry says whether both entries expire at the same time, or neither does.
func (p *Packed) SameExpiry(o *Packed) bool { return p.expiry() == o.expiry() }

// Entry is the entry taken apart, for the caller to keep or change. Its texts
// are parts of the packed one.
func (p *Packed) Entry() *Entry {
	spiffe, parent, _ := p.names()
	e := &Entry{ID: p.ID(), SPIFFEID: idFrom(spiffe), ParentID: idFrom(parent), ModRevision: p.mod}
	for f := range p.fields() {
		e.setWire(f)
	}
	return e
}

// setWire sets what comes after the IDs.
func (e *Entry) setWire(f field) {
	switch f.num {
	case wireSelectors:
		e.Selectors = append(e.Selectors, f.selector())
	case wireFederatesWith:
		e.FederatesWith = append(e.FederatesWith, domainFrom(f.text))
	case wireDNSNames:
		e.DNSNames = append(e.DNSNames, f.text)
	case wireX509SVIDTTL:
		e.X509SVIDTTL = time.Duration(int32(f.number)) * time.Second
	case wireJWTSVIDTTL:
		e.JWTSVIDTTL = time.Duration(int32(f.number)) * time.Second
	case wireAdmin:
		e.Admin = true
	case wireDownstream:
		e.Downstream = true
	case wireStoreSVID:
		e.StoreSVID = true
	case wireHint:
		e.Hint = f.text
	case wireExpiresAt:
		e.ExpiresAt = timeOf(int64(f.number))
	case wireCreatedAt:
		e.CreatedAt = timeOf(int64(f.number))
	case wireRevisionNumber:
		e.RevisionNumber = int64(f.number)
	case wireAttributes:
		e.Attributes = &Attributes{}
		for a := range fieldsOf(f.text) {
			e.Attributes.DisableX509SVIDPrefetch = e.Attributes.DisableX509SVIDPrefetch || a.num == wirePrefetch
			e.Attributes.JWTSVIDIncludeJTI = e.Attributes.JWTSVIDIncludeJTI || a.num == wireJTI
		}
	}
}

// field is one field of a message: text, or number if it is one.
type field struct {
	num    protowire.Number
	text   string
	number uint64
	// at is where in the entry a text begins, with its length.
	at uint32
	// end is where in the message the field ends.
	end int
}

// fields are those after the IDs.
func (p *Packed) fields() iter.Seq[field] {
	return func(yield func(field) bool) {
		_, _, rest := p.names()
		before := len(p.wire) - len(rest)
		for f := range fieldsOf(rest) {
			f.at += uint32(before)
			if !yield(f) {
				return
			}
		}
	}
}

// fieldsOf takes apart what [Entry.Pack] wrote.
func fieldsOf(m string) iter.Seq[field] {
	return func(yield func(field) bool) {
		for rest := m; rest != ""; {
			var tag uint64
			tag, rest = cutNumber(rest)
			f := field{num: protowire.Number(tag >> 3)}
			if protowire.Type(tag&7) == protowire.VarintType {
				f.number, rest = cutNumber(rest)
			} else {
				f.at = uint32(len(m) - len(rest))
				f.text, rest = cutText(rest)
			}
			f.end = len(m) - len(rest)
			if !yield(f) {
				return
			}
		}
	}
}

func (f field) selector() attest.Selector { return selectorFrom(f.text) }

func selectorFrom(m string) (s attest.Selector) {
	s.Type, m = cutText(m[1:])
	s.Value, _ = cutText(m[1:])
	return s
}

// cutName takes an encoded SPIFFE ID apart.
func cutName(m string) (trustDomain, path string) {
	trustDomain, m = cutText(m[1:])
	path, _ = cutText(m[1:])
	return trustDomain, path
}

// idFrom returns the ID that was encoded, of which nothing can be wrong.
func idFrom(m string) spiffeid.ID {
	name, path := cutName(m)
	if name == "" {
		return spiffeid.ID{}
	}
	id, _ := spiffeid.FromPath(domainFrom(name), path)
	return id
}

// domainFrom returns the trust domain whose name was encoded.
func domainFrom(name string) spiffeid.TrustDomain {
	td, _ := spiffeid.TrustDomainFromString(name)
	return td
}

// cutText takes a text off that is preceded by its length.
func cutText(m string) (text, rest string) {
	n, m := cutNumber(m)
	return m[:n], m[n:]
}

// cutNumber takes a varint off.
func cutNumber(m string) (n uint64, rest string) {
	if m[0] < 0x80 {
		return uint64(m[0]), m[1:]
	}
	for i := 0; ; i++ {
		n |= uint64(m[i]&0x7f) << (7 * i)
		if m[i] < 0x80 {
			return n, m[i+1:]
		}
	}
}
