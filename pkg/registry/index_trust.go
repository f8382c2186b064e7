package registry

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/tidwall/btree"
)

// Bundle returns the bundle of a trust domain.
func (ix *Index) Bundle(td spiffeid.TrustDomain) (*Bundle, bool) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.bundles.Get(td.Name())
}

// Bundles returns every bundle, in order of the trust domains' names.
func (ix *Index) Bundles() []*Bundle {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.bundles.Values()
}

// ListBundles returns up to limit bundles, this server's own among them, in
// order of the trust domains' names, from after the given name on. It pages like
// ListEntries.
func (ix *Index) ListBundles(after string, limit int) (list []*Bundle, next string) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return pageOf(&ix.bundles, after, limit)
}

// CountBundles counts the bundles, this server's own among them.
func (ix *Index) CountBundles() int {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.bundles.Len()
}

// Relationship returns the federation relationship with a trust domain.
func (ix *Index) Relationship(td spiffeid.TrustDomain) (*FederationRelationship, bool) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return ix.related.Get(td.Name())
}

// ListRelationships returns up to limit federation relationships, in order of
// the trust domains' names, from after the given name on. It pages like
// ListEntries.
func (ix *Index) ListRelationships(after string, limit int) (list []*FederationRelationship, next string) {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	return pageOf(&ix.related, after, limit)
}

// replaceIn puts what a trust domain has now in the place of what it had; nil
// for nothing.
func replaceIn[T any](m *btree.Map[string, *T], td spiffeid.TrustDomain, now *T) {
	if now == nil {
		m.Delete(td.Name())
		return
	}
	m.Set(td.Name(), now)
}

// pageOf returns up to limit values after a key.
func pageOf[T any](m *btree.Map[string, T], after string, limit int) (list []T, next string) {
	limit = clampPage(limit)
	last := ""
	m.Ascend(after, func(key string, value T) bool {
		switch {
		case key == after:
		case len(list) == limit:
			next = last
			return false
		default:
			list, last = append(list, value), key
		}
		return true
	})
	return list, next
}
