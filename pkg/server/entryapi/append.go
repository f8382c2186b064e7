package entryapi

import (
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/credence-id/credence/pkg/registry"
)

// fieldsOf are the numbers of the fields of spire.api.types.Entry that a mask
// lets through, as bits. The ID is always among them.
func fieldsOf(mask *types.EntryMask) (bits uint32) {
	for num, on := range map[protowire.Number]bool{
		1:  true,
		2:  mask.SpiffeId,
		3:  mask.ParentId,
		4:  mask.Selectors,
		5:  mask.X509SvidTtl,
		6:  mask.FederatesWith,
		7:  mask.Admin,
		8:  mask.Downstream,
		9:  mask.ExpiresAt,
		10: mask.DnsNames,
		11: mask.RevisionNumber,
		12: mask.StoreSvid,
		13: mask.JwtSvidTtl,
		14: mask.Hint,
		15: mask.CreatedAt,
		16: mask.AdditionalAttributes,
	} {
		if on {
			bits |= 1 << num
		}
	}
	return bits
}

// appender writes entries, as elements of one repeated field, with the fields
// of a mask (nil: all) and the ID. What it writes is parts of what the registry
// keeps: a list of a thousand entries costs one buffer, not ten thousand
// messages.
type appender struct {
	field protowire.Number
	all   bool
	bits  uint32
	one   []byte // scratch
}

func newAppender(field protowire.Number, mask *types.EntryMask) *appender {
	a := &appender{field: field, all: mask == nil}
	if !a.all {
		a.bits = fieldsOf(mask)
	}
	return a
}

func (a *appender) append(b []byte, e *registry.Packed) []byte {
	b = protowire.AppendTag(b, a.field, protowire.BytesType)
	if a.all {
		return protowire.AppendString(b, e.Wire())
	}
	a.one = a.one[:0]
	for num, raw := range e.Fields() {
		if a.bits>>num&1 != 0 {
			a.one = append(a.one, raw...)
		}
	}
	return protowire.AppendBytes(b, a.one)
}
