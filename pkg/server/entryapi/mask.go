package entryapi

import (
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/registry"
)

// allFields is the mask that lets every field through; so does nil.
var allFields = &types.EntryMask{
	SpiffeId: true, ParentId: true, Selectors: true, X509SvidTtl: true, FederatesWith: true,
	Admin: true, Downstream: true, ExpiresAt: true, DnsNames: true, RevisionNumber: true,
	StoreSvid: true, JwtSvidTtl: true, Hint: true, CreatedAt: true, AdditionalAttributes: true,
}

// overlay sets in to the fields of from that the mask (nil: all) names; the ID,
// the revision number and the time of creation are the server's own.
func overlay(to, from *types.Entry, mask *types.EntryMask) {
	if mask == nil {
		mask = allFields
	}
	if mask.SpiffeId {
		to.SpiffeId = from.SpiffeId
	}
	if mask.ParentId {
		to.ParentId = from.ParentId
	}
	if mask.Selectors {
		to.Selectors = from.Selectors
	}
	if mask.X509SvidTtl {
		to.X509SvidTtl = from.X509SvidTtl
	}
	if mask.JwtSvidTtl {
		to.JwtSvidTtl = from.JwtSvidTtl
	}
	if mask.FederatesWith {
		to.FederatesWith = from.FederatesWith
	}
	if mask.Admin {
		to.Admin = from.Admin
	}
	if mask.Downstream {
		to.Downstream = from.Downstream
	}
	if mask.StoreSvid {
		to.StoreSvid = from.StoreSvid
	}
	if mask.ExpiresAt {
		to.ExpiresAt = from.ExpiresAt
	}
	if mask.DnsNames {
		to.DnsNames = from.DnsNames
	}
	if mask.Hint {
		to.Hint = from.Hint
	}
	if mask.AdditionalAttributes {
		to.AdditionalAttributes = from.AdditionalAttributes
	}
}

// show is the entry with the fields of the mask (nil: all) and its ID.
func show(e *registry.Entry, mask *types.EntryMask) *types.Entry {
	all := e.ToWire()
	if mask == nil {
		return all
	}
	out := &types.Entry{Id: all.Id}
	overlay(out, all, mask)
	if mask.RevisionNumber {
		out.RevisionNumber = all.RevisionNumber
	}
	if mask.CreatedAt {
		out.CreatedAt = all.CreatedAt
	}
	return out
}
