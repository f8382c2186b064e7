package cache

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Grant is all that a workload may have now. It is shared by every workload
// that matches the same entries, and must not be changed.
type Grant struct {
	// Identities that have an X509-SVID, by entry ID; the first is the
	// default. No two have the same hint: the oldest entry keeps it.
	Identities []Identity
	// Matched is the number of entries that match, with or without an SVID.
	Matched int
	// Bundle is that of our own trust domain; nil when it is not known yet.
	Bundle *Bundle
	// Federated are the bundles of the trust domains that the entries federate
	// with, by name.
	Federated []*Bundle

	// pending entries have a first attempt to mint under way.
	pending int
	// failed is why another entry has no SVID.
	failed error
	// validUntil is when the first of the identities ends; zero: never.
	validUntil time.Time
	encoded    *encodings
}

// Identity is one SPIFFE ID with its X509-SVID.
type Identity struct {
	EntryID  string
	SPIFFEID spiffeid.ID
	Hint     string
	// X509SVID is DER certificates one after the other, leaf first.
	X509SVID []byte
	// PrivateKey is PKCS#8 DER.
	PrivateKey []byte
	NotAfter   time.Time

	svid *x509SVID
}

// encodings are what was made of the content of a Grant, by form.
type encodings struct {
	mu     sync.Mutex
	byForm map[any][]byte // guarded by mu
}

// Encoded returns what encode makes of the grant. It is called once for each
// form, however many workloads share the grant; the result must not be changed.
// Form is a comparable value of a type of the caller's own.
func (g *Grant) Encoded(form any, encode func(*Grant) ([]byte, error)) ([]byte, error) {
	g.encoded.mu.Lock()
	defer g.encoded.mu.Unlock()
	if data, ok := g.encoded.byForm[form]; ok {
		return data, nil
	}
	data, err := encode(g)
	if err != nil {
		return nil, err
	}
	if g.encoded.byForm == nil {
		g.encoded.byForm = map[any][]byte{}
	}
	g.encoded.byForm[form] = data
	return data, nil
}

var _ jwtbundle.Source = (*Grant)(nil)

// GetJWTBundleForTrustDomain returns the JWT authorities of one of the grant's
// bundles, to validate JWT-SVIDs with. It must not be changed.
func (g *Grant) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if g.Bundle != nil && g.Bundle.TrustDomain == td {
		return g.Bundle.jwtBundle, nil
	}
	for _, b := range g.Federated {
		if b.TrustDomain == td {
			return b.jwtBundle, nil
		}
	}
	return nil, fmt.Errorf("the workload has no bundle of trust domain %q", td.Name())
}

// same says whether a workload would see no difference.
func (g *Grant) same(o *Grant) bool {
	return g.Bundle == o.Bundle && (g.Matched == 0) == (o.Matched == 0) && (g.failed == nil) == (o.failed == nil) &&
		slices.Equal(g.Federated, o.Federated) &&
		slices.EqualFunc(g.Identities, o.Identities, func(a, b Identity) bool {
			return a.svid == b.svid && a.Hint == b.Hint && a.SPIFFEID == b.SPIFFEID
		})
}

func (g *Grant) expired(now time.Time) bool {
	return !g.validUntil.IsZero() && !now.Before(g.validUntil)
}

// settled says whether nothing is under way that callers would wait for.
func (g *Grant) settled() bool { return g.pending == 0 }

// grantee is the workloads that match the same entries. Guarded by Cache.mu.
type grantee struct {
	key     string
	records []*record // by entry ID
	views   map[*view]struct{}
	demand  int // views with demand
	grant   *Grant
}

func (s *grantee) federates(name string) bool {
	return slices.ContainsFunc(s.records, func(r *record) bool { return slices.Contains(r.visible().federates, name) })
}

// build makes the grant anew.
func (c *Cache) build(s *grantee) *Grant {
	g := &Grant{Matched: len(s.records), Bundle: c.bundles[c.cfg.TrustDomain.Name()]}
	keepers := hintKeepers(s.records)
	var federated []string
	for _, r := range s.records {
		e := r.visible()
		federated = append(federated, e.federates...)
		if e.hint != "" && keepers[e.hint] != r {
			continue
		}
		if r.pending() {
			g.pending++
		}
		if r.svid == nil {
			if r.failed != nil {
				g.failed = r.failed
			}
			continue
		}
		g.Identities = append(g.Identities, Identity{
			EntryID: e.id, SPIFFEID: e.spiffeID, Hint: e.hint,
			X509SVID: r.svid.chain, PrivateKey: r.svid.key, NotAfter: r.svid.notAfter, svid: r.svid,
		})
		g.validUntil = earlier(g.validUntil, r.svid.notAfter)
		if !r.entry.expiresAt.IsZero() {
			g.validUntil = earlier(g.validUntil, r.entry.expiresAt)
		}
	}
	slices.Sort(federated)
	for _, name := range slices.Compact(federated) {
		if b := c.bundles[name]; b != nil {
			g.Federated = append(g.Federated, b)
		}
	}
	g.encoded = &encodings{}
	if s.grant != nil && s.grant.same(g) {
		g.encoded = s.grant.encoded
	}
	return g
}

// hintKeepers is, for each hint, the record that may use it.
func hintKeepers(records []*record) map[string]*record {
	var keepers map[string]*record
	for _, r := range records {
		e := r.visible()
		if e.hint == "" {
			continue
		}
		if keepers == nil {
			keepers = map[string]*record{}
		}
		if k := keepers[e.hint]; k == nil || e.older(k.visible()) {
			keepers[e.hint] = r
		}
	}
	return keepers
}
