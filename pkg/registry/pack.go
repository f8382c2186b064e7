package registry

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/credence-id/credence/pkg/attest"
)

// Field numbers of spire.api.types.Entry and of the messages in it.
const (
	wireID             = 1
	wireSPIFFEID       = 2
	wireParentID       = 3
	wireSelectors      = 4
	wireX509SVIDTTL    = 5
	wireFederatesWith  = 6
	wireAdmin          = 7
	wireDownstream     = 8
	wireExpiresAt      = 9
	wireDNSNames       = 10
	wireRevisionNumber = 11
	wireStoreSVID      = 12
	wireJWTSVIDTTL     = 13
	wireHint           = 14
	wireCreatedAt      = 15
	wireAttributes     = 16

	// In the messages of selectors and SPIFFE IDs.
	wireFirst  = 1 // a type, a trust domain
	wireSecond = 2 // a value, a path

	wirePrefetch = 1
	wireJTI      = 2
)

// packRoom is what packing a usual entry takes, in bytes.
const packRoom = 1 << 10

// Pack returns the entry, ModRevision included, in the form that tables in
// memory keep. Times and lifetimes are cut to whole seconds, as on disk.
func (e *Entry) Pack() *Packed {
	room := make([]byte, 0, packRoom) // Does not escape.
	return &Packed{wire: string(appendWire(room, e)), mod: e.ModRevision}
}

// packID returns what sorts like an entry with this ID and has nothing else.
func packID(id string) *Packed {
	room := make([]byte, 0, packRoom)
	return &Packed{wire: string(appendText(room, wireID, id))}
}

func appendWire(b []byte, e *Entry) []byte {
	b = appendText(b, wireID, e.ID)
	b = appendID(b, wireSPIFFEID, e.SPIFFEID)
	b = appendID(b, wireParentID, e.ParentID)
	b = appendNumber(b, wireExpiresAt, unixOf(e.ExpiresAt))
	for _, s := range e.Selectors {
		b = appendSelector(b, s)
	}
	for _, td := range e.FederatesWith {
		b = appendText(b, wireFederatesWith, td.Name())
	}
	for _, name := range e.DNSNames {
		b = appendText(b, wireDNSNames, name)
	}
	b = appendNumber(b, wireX509SVIDTTL, int64(int32(e.X509SVIDTTL/time.Second)))
	b = appendNumber(b, wireJWTSVIDTTL, int64(int32(e.JWTSVIDTTL/time.Second)))
	b = appendFlag(b, wireAdmin, e.Admin)
	b = appendFlag(b, wireDownstream, e.Downstream)
	b = appendFlag(b, wireStoreSVID, e.StoreSVID)
	if e.Hint != "" {
		b = appendText(b, wireHint, e.Hint)
	}
	b = appendNumber(b, wireRevisionNumber, e.RevisionNumber)
	b = appendNumber(b, wireCreatedAt, unixOf(e.CreatedAt))
	if a := e.Attributes; a != nil {
		var inner []byte
		inner = appendFlag(inner, wirePrefetch, a.DisableX509SVIDPrefetch)
		inner = appendFlag(inner, wireJTI, a.JWTSVIDIncludeJTI)
		b = protowire.AppendTag(b, wireAttributes, protowire.BytesType)
		b = protowire.AppendBytes(b, inner)
	}
	return b
}

func appendID(b []byte, num protowire.Number, id spiffeid.ID) []byte {
	return appendPair(b, num, id.TrustDomain().Name(), id.Path())
}

func appendSelector(b []byte, s attest.Selector) []byte {
	return appendPair(b, wireSelectors, s.Type, s.Value)
}

// appendPair appends a message of two texts.
func appendPair(b []byte, num protowire.Number, first, second string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(2+protowire.SizeBytes(len(first))+protowire.SizeBytes(len(second))))
	b = appendText(b, wireFirst, first)
	return appendText(b, wireSecond, second)
}

// appendText appends a text, also if it is empty.
func appendText(b []byte, num protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func appendNumber(b []byte, num protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(v))
}

func appendFlag(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendNumber(b, num, 1)
}
