package registry

import (
	"bytes"
	"context"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// FederationRelationship says where the bundle of another trust domain comes
// from. One that came out of the registry is shared and must not be changed.
type FederationRelationship struct {
	TrustDomain spiffeid.TrustDomain
	// EndpointURL is the https URL of the SPIFFE bundle endpoint (SPIFFE
	// Federation, 5).
	EndpointURL string
	// EndpointSPIFFEID is whom the endpoint proves to be with its X509-SVID
	// (profile https_spiffe); zero when it shows a Web PKI certificate instead
	// (profile https_web).
	EndpointSPIFFEID spiffeid.ID

	// ModRevision is the store's revision of the last write. It is not part
	// of the record.
	ModRevision store.Revision
}

// RelationshipUpdate changes one relationship.
type RelationshipUpdate struct {
	TrustDomain spiffeid.TrustDomain
	// Change is given a copy of the relationship, nil if there is none, and
	// returns it as it shall be, or nil to remove it. It may run again, and an
	// error of it leaves everything alone.
	Change func(now *FederationRelationship) (*FederationRelationship, error)
	// Bundle, if not nil, is set in the same Update, in place of the trust
	// domain's bundle.
	Bundle *Bundle
}

// RelationshipResult is the outcome of one update.
type RelationshipResult struct {
	// Relationship and Bundle as they are in the store now; nil if there is
	// none, and with an error.
	Relationship *FederationRelationship
	Bundle       *Bundle
	Err          error
}

// UpdateRelationships changes relationships and answers for each, in order. It
// refuses what breaks a rule, and this server's own trust domain (ErrInvalid).
func (r *Registry) UpdateRelationships(ctx context.Context, updates []RelationshipUpdate) []RelationshipResult {
	results := make([]RelationshipResult, len(updates))
	names := make([]spiffeid.TrustDomain, len(updates))
	items := make([]item, len(updates))
	for i, u := range updates {
		names[i] = u.TrustDomain
		var out relationshipDraft
		items[i] = item{
			ops:   relationshipOps,
			bytes: 4<<10 + u.Bundle.size(),
			step: func(tx store.RWTx) (refusal, err error) {
				out, refusal, err = r.updateRelationship(tx, u)
				return refusal, err
			},
			done: func(rev store.Revision, err error) { results[i] = out.result(rev, err) },
		}
	}
	r.runInTurn(ctx, names, items)
	return results
}

// relationshipOps is what one update costs: a relationship and a bundle read,
// one removed or both written.
const relationshipOps = 4

// relationshipDraft is one update as the Update that made it saw it.
type relationshipDraft struct {
	relationship *FederationRelationship
	bundle       *Bundle
	wrote, set   bool
}

func (d relationshipDraft) result(rev store.Revision, err error) RelationshipResult {
	if err != nil {
		return RelationshipResult{Err: err}
	}
	if d.wrote {
		d.relationship.ModRevision = rev
	}
	if d.set {
		d.bundle.ModRevision = rev
	}
	return RelationshipResult{Relationship: d.relationship, Bundle: d.bundle}
}

func (r *Registry) updateRelationship(tx store.RWTx, u RelationshipUpdate) (d relationshipDraft, refusal, err error) {
	key := relationshipKey(u.TrustDomain)
	kv, found, err := get(tx, key)
	if err != nil {
		return d, nil, err
	}
	var now *FederationRelationship
	if found {
		if now, err = decodeRelationship(kv); err != nil {
			return d, nil, err
		}
	}
	next, refusal := u.Change(now)
	switch {
	case refusal != nil:
		return d, refusal, nil
	case next == nil:
		if found {
			tx.Delete(key)
		}
		return d, nil, nil
	}
	if refusal := r.checkForeign(u.TrustDomain); refusal != nil {
		return d, refusal, nil
	}
	copied := *next
	copied.TrustDomain, copied.ModRevision = u.TrustDomain, kv.ModRevision
	if refusal := copied.Validate(); refusal != nil {
		return d, refusal, nil
	}
	value, refusal := encodeRelationship(&copied)
	if refusal != nil {
		return d, refusal, nil
	}
	bundle, set, refusal, err := r.relatedBundle(tx, u)
	if refusal != nil || err != nil {
		return d, refusal, err
	}
	d = relationshipDraft{relationship: &copied, bundle: bundle, set: set}
	if !found || !bytes.Equal(kv.Value, value) {
		d.wrote = true
		tx.Put(key, value)
	}
	return d, nil, nil
}

// relatedBundle sets the bundle that came with a relationship, or reads the one
// there is.
func (r *Registry) relatedBundle(tx store.RWTx, u RelationshipUpdate) (b *Bundle, set bool, refusal, err error) {
	kv, found, err := get(tx, bundleKey(u.TrustDomain))
	switch {
	case err != nil:
		return nil, false, nil, err
	case u.Bundle != nil:
		b, set, refusal = putBundle(tx, u.TrustDomain, kv.Value, u.Bundle)
		if !set && refusal == nil {
			b.ModRevision = kv.ModRevision
		}
		return b, set, refusal, nil
	case !found:
		return nil, false, nil, nil
	}
	b, err = decodeBundle(kv)
	return b, false, nil, err
}

// checkForeign refuses this server's own trust domain.
func (r *Registry) checkForeign(td spiffeid.TrustDomain) error {
	switch {
	case td.IsZero():
		return invalid("trust_domain", "is required")
	case td == r.td:
		return invalid("trust_domain", "%q is this server's own trust domain", td.Name())
	}
	return nil
}

// runInTurn is run for items that are independent unless they have the same
// trust domain: those follow one another in order.
func (r *Registry) runInTurn(ctx context.Context, names []spiffeid.TrustDomain, items []item) {
	for len(items) > 0 {
		seen := make(map[spiffeid.TrustDomain]bool, len(items))
		var now, later []item
		var laterNames []spiffeid.TrustDomain
		for i, name := range names {
			if seen[name] {
				later, laterNames = append(later, items[i]), append(laterNames, name)
				continue
			}
			seen[name] = true
			now = append(now, items[i])
		}
		r.run(ctx, now)
		items, names = later, laterNames
	}
}
