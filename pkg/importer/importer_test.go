package importer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestEveryFieldCounts changes each field of an entry, bundle and
// relationship: all but those that each server counts for itself show in the
// digest, and by name.
func TestEveryFieldCounts(t *testing.T) {
	t.Parallel()
	hold(t, &types.Entry{Id: "x"}, canonicalEntry, "revision_number", "created_at")
	hold(t, &types.Bundle{TrustDomain: "x"}, canonicalBundle, "sequence_number")
	hold(t, &types.FederationRelationship{TrustDomain: "x"}, canonicalRelationship, "trust_domain_bundle")
}

func hold[T proto.Message](t *testing.T, base T, canonical func(T) T, left ...string) {
	t.Helper()
	before := mustDigest(t, canonical(base))
	fields := base.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		changed := proto.CloneOf(base)
		set(changed.ProtoReflect(), f)
		want := string(f.Name())
		for _, name := range left {
			if name == want {
				want = ""
			}
		}
		if got := mustDigest(t, canonical(changed)) != before; got != (want != "") {
			t.Errorf("%s: the digest differs: %t", f.FullName(), got)
		}
		if got := differing(canonical(base), canonical(changed)); got != want {
			t.Errorf("%s: differing says %q", f.FullName(), got)
		}
	}
}

// set gives a field a value that it does not have.
func set(m protoreflect.Message, f protoreflect.FieldDescriptor) {
	switch {
	case f.IsList() && f.Message() != nil:
		m.Mutable(f).List().Append(filled(m.Mutable(f).List().NewElement()))
	case f.IsList():
		m.Mutable(f).List().Append(protoreflect.ValueOfString("y"))
	case f.Message() != nil:
		m.Set(f, filled(m.NewField(f)))
	default:
		m.Set(f, scalar(f))
	}
}

// filled is a message that is not empty, if it has fields.
func filled(v protoreflect.Value) protoreflect.Value {
	fields := v.Message().Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.Message() == nil && !f.IsList() {
			v.Message().Set(f, scalar(f))
		}
	}
	return v
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(7)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("y"))
	default:
		return protoreflect.ValueOfString("y")
	}
}

func mustDigest(t *testing.T, m proto.Message) digest {
	t.Helper()
	d, err := digestOf(m)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestSetsHaveNoOrder: what is a set is the same in any order, DNS names are not.
func TestSetsHaveNoOrder(t *testing.T) {
	t.Parallel()
	a := &types.Entry{
		Selectors:     []*types.Selector{{Type: "b", Value: "1"}, {Type: "a", Value: "2"}, {Type: "a", Value: "1"}},
		FederatesWith: []string{"b.test", "a.test"}, AdditionalAttributes: &types.Entry_AdditionalAttributes{},
	}
	b := &types.Entry{
		Selectors:     []*types.Selector{{Type: "a", Value: "1"}, {Type: "a", Value: "2"}, {Type: "b", Value: "1"}},
		FederatesWith: []string{"a.test", "b.test"},
	}
	if mustDigest(t, canonicalEntry(a)) != mustDigest(t, canonicalEntry(b)) {
		t.Error("entries differ by the order of their selectors, by that of their trust domains or by attributes that are not set")
	}
	a.DnsNames, b.DnsNames = []string{"a", "b"}, []string{"b", "a"}
	if got := differing(canonicalEntry(a), canonicalEntry(b)); got != "dns_names" {
		t.Errorf("differing says %q, want dns_names", got)
	}
}

// TestSumTellsItemsApart: digests of other sets of items are other digests.
func TestSumTellsItemsApart(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for name, items := range map[string]map[string]digest{
		"none": {}, "one": {"a": {1}}, "another ID": {"b": {1}}, "another content": {"a": {2}}, "two": {"a": {1}, "b": {1}}, "swapped": {"a": {2}, "b": {1}},
	} {
		s := sum(items)
		if other, ok := seen[s]; ok {
			t.Errorf("%s and %s have one sum", name, other)
		}
		seen[s] = name
		if sum(items) != s {
			t.Errorf("%s: the sum varies", name)
		}
	}
}

// TestMissingAuthorities: what the other bundle lacks and may be trusted.
func TestMissingAuthorities(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca := func(ends time.Time) *types.X509Certificate { return &types.X509Certificate{Asn1: selfSigned(t, ends)} }
	known, fresh, expired, tainted := ca(now.Add(time.Hour)), ca(now.Add(time.Hour)), ca(now.Add(-time.Minute)), ca(now.Add(time.Hour))
	tainted.Tainted = true
	key := func(id, public string, ends int64) *types.JWTKey {
		return &types.JWTKey{KeyId: id, PublicKey: []byte(public), ExpiresAt: ends}
	}
	compromised := key("tainted", "t", 0)
	compromised.Tainted = true
	from := &types.Bundle{
		X509Authorities: []*types.X509Certificate{known, fresh, expired, tainted},
		JwtAuthorities: []*types.JWTKey{key("known", "k", 0), key("fresh", "f", now.Add(time.Hour).Unix()), key("forever", "e", 0),
			key("expired", "x", now.Unix()), key("same ID", "other", 0), compromised},
	}
	in := &types.Bundle{X509Authorities: []*types.X509Certificate{known}, JwtAuthorities: []*types.JWTKey{key("known", "k", 0), key("same ID", "key", 0)}}
	var warnings []string
	r := &run{Config: Config{Now: func() time.Time { return now }, Warn: func(text string) { warnings = append(warnings, text) }}.withDefaults(), report: &Report{}}
	got := r.missing(from, in, "this server")
	if len(got.GetX509Authorities()) != 1 || got.GetX509Authorities()[0] != fresh {
		t.Errorf("X.509 authorities: %v", got.GetX509Authorities())
	}
	var ids []string
	for _, k := range got.GetJwtAuthorities() {
		ids = append(ids, k.GetKeyId())
	}
	if diff := cmp.Diff([]string{"fresh", "forever", "same ID"}, ids); diff != "" {
		t.Errorf("JWT authorities (-want +got):\n%s", diff)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "tainted X.509 authority of this server") || !strings.Contains(warnings[1], "tainted JWT authority") {
		t.Errorf("warnings: %q", warnings)
	}
}

func selfSigned(t *testing.T, ends time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: ends.Add(-2 * time.Hour), NotAfter: ends, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
