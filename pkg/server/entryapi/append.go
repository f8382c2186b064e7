package entryapi

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/credence-id/credence/pkg/registry"
)

// Field numbers of spire.api.types.Entry and of the messages in it.
const (
	entryID             = 1
	entrySPIFFEID       = 2
	entryParentID       = 3
	entrySelectors      = 4
	entryX509SVIDTTL    = 5
	entryFederatesWith  = 6
	entryAdmin          = 7
	entryDownstream     = 8
	entryExpiresAt      = 9
	entryDNSNames       = 10
	entryRevisionNumber = 11
	entryStoreSVID      = 12
	entryJWTSVIDTTL     = 13
	entryHint           = 14
	entryCreatedAt      = 15
	entryAttributes     = 16

	idTrustDomain = 1
	idPath        = 2

	selectorType  = 1
	selectorValue = 2

	attributePrefetch = 1
	attributeJTI      = 2
)

// appendEntry appends, as one element of the given repeated field, the encoded
// form of the entry with the fields of the mask (nil: all) and its ID. A list
// of a thousand entries costs one buffer this way, not ten thousand messages.
func appendEntry(b []byte, field protowire.Number, e *registry.Entry, mask *types.EntryMask) []byte {
	if mask == nil {
		mask = allFields
	}
	b, at := open(b, field)
	b = appendText(b, entryID, e.ID)
	if mask.SpiffeId {
		b = appendID(b, entrySPIFFEID, e.SPIFFEID)
	}
	if mask.ParentId {
		b = appendID(b, entryParentID, e.ParentID)
	}
	if mask.Selectors {
		for _, s := range e.Selectors {
			b = protowire.AppendTag(b, entrySelectors, protowire.BytesType)
			b = protowire.AppendVarint(b, uint64(sizeText(s.Type)+sizeText(s.Value)))
			b = appendText(b, selectorType, s.Type)
			b = appendText(b, selectorValue, s.Value)
		}
	}
	if mask.FederatesWith {
		for _, td := range e.FederatesWith {
			b = protowire.AppendTag(b, entryFederatesWith, protowire.BytesType)
			b = protowire.AppendString(b, td.Name())
		}
	}
	if mask.DnsNames {
		for _, name := range e.DNSNames {
			b = protowire.AppendTag(b, entryDNSNames, protowire.BytesType)
			b = protowire.AppendString(b, name)
		}
	}
	if mask.AdditionalAttributes && e.Attributes != nil {
		inner, start := open(b, entryAttributes)
		inner = appendBool(inner, attributePrefetch, e.Attributes.DisableX509SVIDPrefetch)
		inner = appendBool(inner, attributeJTI, e.Attributes.JWTSVIDIncludeJTI)
		b = closeMessage(inner, start)
	}
	return closeMessage(appendScalars(b, e, mask), at)
}

func appendScalars(b []byte, e *registry.Entry, mask *types.EntryMask) []byte {
	b = appendBool(b, entryAdmin, mask.Admin && e.Admin)
	b = appendBool(b, entryDownstream, mask.Downstream && e.Downstream)
	b = appendBool(b, entryStoreSVID, mask.StoreSvid && e.StoreSVID)
	if mask.X509SvidTtl {
		b = appendInt(b, entryX509SVIDTTL, int64(e.X509SVIDTTL/time.Second))
	}
	if mask.JwtSvidTtl {
		b = appendInt(b, entryJWTSVIDTTL, int64(e.JWTSVIDTTL/time.Second))
	}
	if mask.ExpiresAt {
		b = appendInt(b, entryExpiresAt, unix(e.ExpiresAt))
	}
	if mask.RevisionNumber {
		b = appendInt(b, entryRevisionNumber, e.RevisionNumber)
	}
	if mask.Hint {
		b = appendText(b, entryHint, e.Hint)
	}
	if mask.CreatedAt {
		b = appendInt(b, entryCreatedAt, unix(e.CreatedAt))
	}
	return b
}

func appendID(b []byte, field protowire.Number, id spiffeid.ID) []byte {
	name, path := id.TrustDomain().Name(), id.Path()
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeText(name)+sizeText(path)))
	b = appendText(b, idTrustDomain, name)
	return appendText(b, idPath, path)
}

// sizeText is the size of what appendText writes for the field numbers 1 to 15.
func sizeText(s string) int {
	if s == "" {
		return 0
	}
	return 1 + protowire.SizeBytes(len(s))
}

func appendText(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, 1)
}

// unix is 0 for the zero time.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func appendInt(b []byte, field protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(v))
}

// sizeRoom is the bytes kept free for a message's length before it is known:
// enough for messages below 16 KiB; a longer one is moved.
const sizeRoom = 2

// open begins a message whose size is not known yet and returns where its
// length goes.
func open(b []byte, field protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	at := len(b)
	return append(b, make([]byte, sizeRoom)...), at
}

// closeMessage writes the length of the message that begins after the room at.
func closeMessage(b []byte, at int) []byte {
	size := len(b) - at - sizeRoom
	if size < 1<<14 {
		// A varint of two bytes, also where one would do: decoders must take
		// it, and nothing has to be moved.
		b[at] = byte(size) | 0x80
		b[at+1] = byte(size >> 7)
		return b
	}
	need := protowire.SizeVarint(uint64(size))
	b = append(b, make([]byte, need-sizeRoom)...)
	copy(b[at+need:], b[at+sizeRoom:at+sizeRoom+size])
	protowire.AppendVarint(b[:at], uint64(size))
	return b
}
