package workloadapi

import (
	"encoding/json"
	"fmt"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/proto"
)

// form is one of the messages that are made of a grant.
type form int

const (
	x509SVIDForm form = iota
	x509BundlesForm
	jwtBundlesForm
)

// encode makes the message. The same grant always gives the same bytes.
func (f form) encode(g *cache.Grant) ([]byte, error) {
	var m proto.Message
	var err error
	switch f {
	case x509SVIDForm:
		m = x509SVIDResponse(g)
	case x509BundlesForm:
		m = x509BundlesResponse(g)
	case jwtBundlesForm:
		m, err = jwtBundlesResponse(g)
	}
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

func x509SVIDResponse(g *cache.Grant) *workload.X509SVIDResponse {
	resp := &workload.X509SVIDResponse{FederatedBundles: federatedX509(g)}
	for _, id := range g.Identities {
		resp.Svids = append(resp.Svids, &workload.X509SVID{
			SpiffeId: id.SPIFFEID.String(), X509Svid: id.X509SVID, X509SvidKey: id.PrivateKey,
			Bundle: g.Bundle.X509Authorities, Hint: id.Hint,
		})
	}
	return resp
}

func x509BundlesResponse(g *cache.Grant) *workload.X509BundlesResponse {
	bundles := federatedX509(g)
	bundles[g.Bundle.TrustDomain.IDString()] = g.Bundle.X509Authorities
	return &workload.X509BundlesResponse{Bundles: bundles}
}

// federatedX509 leaves out bundles without X.509 authorities: clients refuse the
// whole message for one that is empty.
func federatedX509(g *cache.Grant) map[string][]byte {
	bundles := make(map[string][]byte, len(g.Federated)+1)
	for _, b := range g.Federated {
		if len(b.X509Authorities) > 0 {
			bundles[b.TrustDomain.IDString()] = b.X509Authorities
		}
	}
	return bundles
}

func jwtBundlesResponse(g *cache.Grant) (*workload.JWTBundlesResponse, error) {
	bundles := make(map[string][]byte, len(g.Federated)+1)
	for _, b := range append(g.Federated[:len(g.Federated):len(g.Federated)], g.Bundle) {
		doc, err := jwks(b)
		if err != nil {
			return nil, fmt.Errorf("encoding the JWT bundle of trust domain %q: %w", b.TrustDomain.Name(), err)
		}
		bundles[b.TrustDomain.IDString()] = doc
	}
	return &workload.JWTBundlesResponse{Bundles: bundles}, nil
}

// jwks is a JWKS as any JOSE library takes it (RFC 7517): keys have no "use",
// which the SPIFFE bundle format has and verifiers of plain JWTs may filter by.
func jwks(b *cache.Bundle) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(b.JWTAuthorities))}
	for _, a := range b.JWTAuthorities {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: a.Key, KeyID: a.KeyID})
	}
	return json.Marshal(set)
}
