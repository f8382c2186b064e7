package registry

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/store"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

func newCert(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newPKIX(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pkix
}

// newWireBundle has two authorities of each kind; each field has a value of its
// own.
func newWireBundle(t testing.TB, name string) *types.Bundle {
	t.Helper()
	return &types.Bundle{
		TrustDomain: name, RefreshHint: 61, SequenceNumber: 62,
		X509Authorities: []*types.X509Certificate{{Asn1: newCert(t), Tainted: true}, {Asn1: newCert(t)}},
		JwtAuthorities: []*types.JWTKey{
			{KeyId: "j1", PublicKey: newPKIX(t), ExpiresAt: 1700000001}, {KeyId: "j2", PublicKey: newPKIX(t), ExpiresAt: 1700000002, Tainted: true},
		},
		WitAuthorities: []*types.WITKey{
			{KeyId: "w1", PublicKey: newPKIX(t), ExpiresAt: 1700000003, Tainted: true}, {KeyId: "w2", PublicKey: newPKIX(t), ExpiresAt: 1700000004},
		},
	}
}

// unset lists the fields of a message, however deep, that have no value.
func unset(m protoreflect.Message) (out []string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.ContainingOneof() != nil && m.WhichOneof(f.ContainingOneof()) != nil && !m.Has(f):
		case !m.Has(f):
			out = append(out, string(f.FullName()))
		case f.IsList() && f.Message() != nil:
			for j := range m.Get(f).List().Len() {
				out = append(out, unset(m.Get(f).List().Get(j).Message())...)
			}
		case f.Message() != nil:
			out = append(out, unset(m.Get(f).Message())...)
		}
	}
	return out
}

// S15: a bundle and a relationship come out of the index as they came in by the
// wire, through registry, store and log. Every field has a value of its own.
func TestS15_TrustRoundTripsFromWireToWire(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ix := follow(t, r)
	bundle := newWireBundle(t, "other.org")
	// Of each pair of authorities one is tainted.
	want := []string{
		"spire.api.types.X509Certificate.tainted", "spire.api.types.JWTKey.tainted", "spire.api.types.WITKey.tainted",
	}
	if diff := cmp.Diff(want, unset(bundle.ProtoReflect())); diff != "" {
		t.Fatalf("fields without a value (-want +got):\n%s", diff)
	}
	b, err := BundleFromWire(bundle)
	if err != nil {
		t.Fatal(err)
	}
	res := r.UpdateBundles(t.Context(), []BundleUpdate{{other, func(*Bundle) (*Bundle, error) { return b, nil }}})
	if res[0].Err != nil {
		t.Fatal(res[0].Err)
	}
	caughtUp(t, r, ix)
	got, _ := ix.Bundle(other)
	for name, b := range map[string]*Bundle{"answer": res[0].Bundle, "index": got, "clone": got.Clone()} {
		if diff := cmp.Diff(bundle, b.ToWire(), protocmp.Transform()); diff != "" {
			t.Errorf("bundle, %s (-want +got):\n%s", name, diff)
		}
	}

	related := newWireBundle(t, "third.org")
	third := spiffeid.RequireTrustDomainFromString("third.org")
	for _, wire := range []*types.FederationRelationship{
		{
			TrustDomain: "third.org", BundleEndpointUrl: "https://third.org:8443/bundle?x=y", TrustDomainBundle: related,
			BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "spiffe://fourth.org/e"}},
		},
		{
			TrustDomain: "third.org", BundleEndpointUrl: "https://third.org", TrustDomainBundle: related,
			BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
		},
	} {
		if diff := cmp.Diff(want, unset(wire.ProtoReflect())); diff != "" {
			t.Fatalf("fields without a value (-want +got):\n%s", diff)
		}
		f, b, err := RelationshipFromWire(wire)
		if err != nil {
			t.Fatal(err)
		}
		res := r.UpdateRelationships(t.Context(), []RelationshipUpdate{
			{third, func(*FederationRelationship) (*FederationRelationship, error) { return f, nil }, b},
		})[0]
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		caughtUp(t, r, ix)
		indexed, _ := ix.Relationship(third)
		bundle, _ := ix.Bundle(third)
		for name, got := range map[string]*types.FederationRelationship{"answer": res.Relationship.ToWire(res.Bundle), "index": indexed.ToWire(bundle)} {
			if diff := cmp.Diff(wire, got, protocmp.Transform()); diff != "" {
				t.Errorf("relationship, %s (-want +got):\n%s", name, diff)
			}
		}
		if diff := cmp.Diff(res.Relationship, indexed, comparing); diff != "" {
			t.Errorf("relationship, answer and index (-want +got):\n%s", diff)
		}
	}
}

func TestS15_RelationshipRecord(t *testing.T) {
	t.Parallel()
	want := filled[FederationRelationship](t)
	value, err := encodeRelationship(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRelationship(store.KV{Key: relationshipKey(want.TrustDomain), Value: value, ModRevision: want.ModRevision})
	if diff := cmp.Diff(want, got, comparing); err != nil || diff != "" {
		t.Errorf("(-want +got): %v\n%s", err, diff)
	}
	bad, _ := proto.Marshal(&recordv1.FederationRelationship{BundleEndpointUrl: "https://x", EndpointSpiffeId: "x"})
	for _, kv := range []store.KV{{Key: "r/", Value: value}, {Key: "r/UP", Value: value}, {Key: "r/x"}, {Key: "r/x", Value: bad}, {Key: "r/x", Value: []byte{0xff}}} {
		if f, err := decodeRelationship(kv); err == nil {
			t.Errorf("relationship %q: got %+v", kv.Key, f)
		}
	}
}

func TestS08_BundleLimits(t *testing.T) {
	t.Parallel()
	cert, pkix := newCert(t), newPKIX(t)
	certs := func(n int) (out []X509Authority) {
		for range n {
			out = append(out, X509Authority{DER: cert})
		}
		return out
	}
	jwt := func(n int) (out []JWTAuthority) {
		for i := range n {
			out = append(out, JWTAuthority{KeyID: fmt.Sprint("j", i), PKIX: pkix})
		}
		return out
	}
	wit := func(n int) (out []WITAuthority) {
		for i := range n {
			out = append(out, WITAuthority{KeyID: fmt.Sprint("w", i), PKIX: pkix})
		}
		return out
	}
	named := func(id string) []JWTAuthority { return []JWTAuthority{{KeyID: id, PKIX: pkix}} }
	tests := []struct {
		name, field string // no field: good
		bundle      Bundle
	}{
		{"nothing", "", Bundle{}},
		{"hint 0", "", Bundle{RefreshHint: 0}},
		{"hint at the limit - 1 s", "", Bundle{RefreshHint: maxRefreshHint - time.Second}},
		{"hint at the limit", "", Bundle{RefreshHint: maxRefreshHint}},
		{"hint beyond", "refresh_hint", Bundle{RefreshHint: maxRefreshHint + time.Second}},
		{"negative hint", "refresh_hint", Bundle{RefreshHint: -time.Second}},
		{"hint of half a second", "refresh_hint", Bundle{RefreshHint: time.Second / 2}},
		{"certificates - 1", "", Bundle{X509Authorities: certs(maxAuthorities - 1)}},
		{"certificates", "", Bundle{X509Authorities: certs(maxAuthorities)}},
		{"certificates + 1", "x509_authorities", Bundle{X509Authorities: certs(maxAuthorities + 1)}},
		{"empty certificate", "x509_authorities", Bundle{X509Authorities: []X509Authority{{}}}},
		{"JWT keys - 1", "", Bundle{JWTAuthorities: jwt(maxAuthorities - 1)}},
		{"JWT keys", "", Bundle{JWTAuthorities: jwt(maxAuthorities)}},
		{"JWT keys + 1", "jwt_authorities", Bundle{JWTAuthorities: jwt(maxAuthorities + 1)}},
		{"WIT keys - 1", "", Bundle{WITAuthorities: wit(maxAuthorities - 1)}},
		{"WIT keys", "", Bundle{WITAuthorities: wit(maxAuthorities)}},
		{"WIT keys + 1", "wit_authorities", Bundle{WITAuthorities: wit(maxAuthorities + 1)}},
		{"key ID - 1", "", Bundle{JWTAuthorities: named(strings.Repeat("x", maxKeyID-1))}},
		{"key ID", "", Bundle{JWTAuthorities: named(strings.Repeat("x", maxKeyID))}},
		{"key ID + 1", "jwt_authorities", Bundle{JWTAuthorities: named(strings.Repeat("x", maxKeyID+1))}},
		{"no key ID", "jwt_authorities", Bundle{JWTAuthorities: named("")}},
		{"no key", "wit_authorities", Bundle{WITAuthorities: []WITAuthority{{KeyID: "x"}}}},
		{"key ID twice", "jwt_authorities", Bundle{JWTAuthorities: append(named("x"), named("x")...)}},
		{"key ID in both kinds", "wit_authorities", Bundle{JWTAuthorities: named("x"), WITAuthorities: []WITAuthority{{KeyID: "x", PKIX: pkix}}}},
	}
	for _, tt := range tests {
		err := tt.bundle.Validate()
		bad, _ := errors.AsType[*InvalidError](err)
		if (tt.field == "") != (err == nil) || bad != nil && bad.Field != tt.field {
			t.Errorf("%s: want field %q, got %v", tt.name, tt.field, err)
		}
	}
	for _, tt := range []struct {
		at   int64
		good bool
	}{{0, true}, {1, true}, {maxExpiry - 1, true}, {maxExpiry, true}, {maxExpiry + 1, false}, {-1, false}, {math.MaxInt64, false}} {
		w := &types.Bundle{TrustDomain: "other.org", JwtAuthorities: []*types.JWTKey{{KeyId: "x", PublicKey: pkix, ExpiresAt: tt.at}}}
		b, err := BundleFromWire(w)
		if (err == nil) != tt.good || err == nil && b.ToWire().GetJwtAuthorities()[0].GetExpiresAt() != tt.at {
			t.Errorf("expires_at %d: got %v, %v", tt.at, b, err)
		}
	}
}

func TestS08_TrustDomainLength(t *testing.T) {
	t.Parallel()
	for n := maxTrustDomain - 1; n <= maxTrustDomain+1; n++ {
		name, good := strings.Repeat("x", n), n <= maxTrustDomain
		web := &types.FederationRelationship_HttpsWeb{}
		_, err := TrustDomainFromWire(name)
		_, err1 := BundleFromWire(&types.Bundle{TrustDomain: name})
		_, _, err2 := RelationshipFromWire(&types.FederationRelationship{TrustDomain: name, BundleEndpointUrl: "https://x", BundleEndpointProfile: web})
		_, err3 := TrustDomainsFromWire([]string{name})
		for i, err := range []error{err, err1, err2, err3} {
			if (err == nil) != good {
				t.Errorf("%d, %d bytes: %v", i, n, err)
			}
		}
	}
}

// Each certificate of a chain in the place of one is an authority.
func TestBundleFromWireTakesChains(t *testing.T) {
	t.Parallel()
	one, two := newCert(t), newCert(t)
	b, err := BundleFromWire(&types.Bundle{TrustDomain: "other.org", X509Authorities: []*types.X509Certificate{
		{Asn1: append(bytes.Clone(one), two...), Tainted: true},
	}})
	want := []X509Authority{{DER: one, Tainted: true}, {DER: two, Tainted: true}}
	if err != nil || !cmp.Equal(want, b.X509Authorities) {
		t.Errorf("got %+v, %v", b, err)
	}
}

func TestS08_RelationshipRules(t *testing.T) {
	t.Parallel()
	web := &types.FederationRelationship_HttpsWeb{}
	id := func(n int) *types.FederationRelationship_HttpsSpiffe {
		text := "spiffe://other.org/"
		return &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: text + strings.Repeat("x", n-len(text))}}
	}
	url := func(n int) string { return "https://x/" + strings.Repeat("x", n-len("https://x/")) }
	type w = types.FederationRelationship
	tests := []struct {
		name, field string
		w           *w
	}{
		{"web", "", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: web}},
		{"port and query", "", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://[::1]:8443/a?b#c", BundleEndpointProfile: web}},
		{"highest port", "", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x:65535", BundleEndpointProfile: web}},
		{"port + 1", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x:65536", BundleEndpointProfile: web}},
		{"port 0", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x:0", BundleEndpointProfile: web}},
		{"upper case scheme", "", &w{TrustDomain: "other.org", BundleEndpointUrl: "HTTPS://x", BundleEndpointProfile: web}},
		{"spiffe", "", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: id(40)}},
		{"URL - 1", "", &w{TrustDomain: "other.org", BundleEndpointUrl: url(maxURL - 1), BundleEndpointProfile: web}},
		{"URL", "", &w{TrustDomain: "other.org", BundleEndpointUrl: url(maxURL), BundleEndpointProfile: web}},
		{"URL + 1", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: url(maxURL + 1), BundleEndpointProfile: web}},
		{"ID - 1", "", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: id(maxSPIFFEID - 1)}},
		{"ID", "", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: id(maxSPIFFEID)}},
		{"ID + 1", "bundle_endpoint_profile", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: id(maxSPIFFEID + 1)}},
		{"nothing", "trust_domain", &w{}},
		{"trust domain", "trust_domain", &w{TrustDomain: "NO", BundleEndpointUrl: "https://x", BundleEndpointProfile: web}},
		{"no URL", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointProfile: web}},
		{"http", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "http://x", BundleEndpointProfile: web}},
		{"no scheme", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "//x", BundleEndpointProfile: web}},
		{"no host", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https:///x", BundleEndpointProfile: web}},
		{"port alone", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://:8443", BundleEndpointProfile: web}},
		{"bad port", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x:port", BundleEndpointProfile: web}},
		{"user info", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://u:canary@x", BundleEndpointProfile: web}},
		{"opaque", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https:x", BundleEndpointProfile: web}},
		{"not a URL", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: ":canary", BundleEndpointProfile: web}},
		{"control character", "bundle_endpoint_url", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x\n", BundleEndpointProfile: web}},
		{"no profile", "bundle_endpoint_profile", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x"}},
		{"no ID", "bundle_endpoint_profile", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{}}},
		{"another's bundle", "trust_domain_bundle", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: web, TrustDomainBundle: &types.Bundle{TrustDomain: "third.org"}}},
		{"bad bundle", "trust_domain_bundle", &w{TrustDomain: "other.org", BundleEndpointUrl: "https://x", BundleEndpointProfile: web, TrustDomainBundle: &types.Bundle{TrustDomain: "other.org", RefreshHint: -1}}},
	}
	for _, tt := range tests {
		_, _, err := RelationshipFromWire(tt.w)
		bad, _ := errors.AsType[*InvalidError](err)
		if (tt.field == "") != (err == nil) || bad != nil && bad.Field != tt.field || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: want field %q, got %v", tt.name, tt.field, err)
		}
	}
	if _, _, err := RelationshipFromWire(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no relationship: got %v", err)
	}
}

// FuzzBundleFromWire: whatever is taken is whole, says the same again on the
// wire, and survives the store.
func FuzzBundleFromWire(f *testing.F) {
	whole, err := proto.Marshal(newWireBundle(f, "other.org"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte{})
	f.Add(bytes.Repeat(whole, 2))
	f.Fuzz(func(t *testing.T, data []byte) {
		var w types.Bundle
		if proto.Unmarshal(data, &w) != nil {
			return
		}
		b, err := BundleFromWire(&w)
		if err != nil {
			if _, ok := errors.AsType[*InvalidError](err); !ok {
				t.Fatalf("not an InvalidError: %v", err)
			}
			return
		}
		again, err := BundleFromWire(b.ToWire())
		if diff := cmp.Diff(b, again, comparing); err != nil || diff != "" {
			t.Fatalf("read again (-want +got): %v\n%s", err, diff)
		}
		value, err := encodeBundle(b)
		if err != nil {
			return // Larger than is allowed.
		}
		stored, err := decodeBundle(store.KV{Key: bundleKey(b.TrustDomain), Value: value})
		if diff := cmp.Diff(b, stored, comparing, cmpopts.IgnoreFields(Bundle{}, "ModRevision")); err != nil || diff != "" {
			t.Fatalf("stored (-want +got): %v\n%s", err, diff)
		}
	})
}

// FuzzEndpointRule: a URL that is taken is https, has a host and no password.
func FuzzEndpointRule(f *testing.F) {
	for _, text := range []string{"https://x", "https://[::1]:8443/a?b#c", "https://u:p@x", "//x", "https://:1", "https:x", ":", "HTTPS://X%20"} {
		f.Add(text, "spiffe://other.org/x")
	}
	f.Fuzz(func(t *testing.T, text, id string) {
		w := &types.FederationRelationship{
			TrustDomain: "other.org", BundleEndpointUrl: text,
			BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: id}},
		}
		got, _, err := RelationshipFromWire(w)
		if err != nil {
			return
		}
		if !strings.EqualFold(text[:8], "https://") || len(text) > maxURL || strings.Contains(strings.SplitN(text[8:], "/", 2)[0], "@") {
			t.Errorf("taken: %q", text)
		}
		value, err := encodeRelationship(got)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := decodeRelationship(store.KV{Key: relationshipKey(got.TrustDomain), Value: value})
		if diff := cmp.Diff(got, stored, comparing); err != nil || diff != "" {
			t.Fatalf("stored (-want +got): %v\n%s", err, diff)
		}
	})
}

// FuzzDecodeTrust: a record of a bundle or a relationship that is taken is whole,
// and is the same when it is written and read again.
func FuzzDecodeTrust(f *testing.F) {
	bundle, err1 := encodeBundle(filled[Bundle](f))
	relationship, err2 := encodeRelationship(filled[FederationRelationship](f))
	if err := errors.Join(err1, err2); err != nil {
		f.Fatal(err)
	}
	f.Add(bundle)
	f.Add(relationship)
	f.Add(bundle[:len(bundle)/2])
	f.Fuzz(func(t *testing.T, value []byte) {
		if b, err := decodeBundle(store.KV{Key: bundleKey(other), Value: value}); err == nil {
			again, err := encodeBundle(b)
			if err != nil {
				return // Larger than is allowed.
			}
			now, err := decodeBundle(store.KV{Key: bundleKey(other), Value: again})
			if diff := cmp.Diff(b, now, comparing); err != nil || diff != "" {
				t.Errorf("bundle (-want +got): %v\n%s", err, diff)
			}
		}
		if r, err := decodeRelationship(store.KV{Key: relationshipKey(other), Value: value}); err == nil {
			again, err := encodeRelationship(r)
			if err != nil {
				t.Fatal(err)
			}
			now, err := decodeRelationship(store.KV{Key: relationshipKey(other), Value: again})
			if diff := cmp.Diff(r, now, comparing); err != nil || diff != "" {
				t.Errorf("relationship (-want +got): %v\n%s", err, diff)
			}
		}
	})
}

// TestBundleOfKeysThatNoJWKSHas: an authority that cannot be written as a JWK
// would keep all of its bundle from whoever reads a JWKS.
func TestBundleOfKeysThatNoJWKSHas(t *testing.T) {
	t.Parallel()
	for curve, good := range map[elliptic.Curve]bool{elliptic.P224(): false, elliptic.P256(): true, elliptic.P521(): true} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pkix, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range []*types.Bundle{
			{TrustDomain: "other.org", JwtAuthorities: []*types.JWTKey{{KeyId: "x", PublicKey: pkix}}},
			{TrustDomain: "other.org", WitAuthorities: []*types.WITKey{{KeyId: "x", PublicKey: pkix}}},
		} {
			if _, err := BundleFromWire(w); (err == nil) != good || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: want good=%t, got %v", curve.Params().Name, good, err)
			}
		}
	}
}
