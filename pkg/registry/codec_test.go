package registry

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/store"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// fill sets every exported field, however deep, to a value that no other field
// has, or fails on a type it does not know: whoever adds one teaches it.
func fill(t testing.TB, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch x := v.Addr().Interface().(type) {
	case *spiffeid.ID:
		*x = id(fmt.Sprintf("/id/%d", *n))
		return
	case *spiffeid.TrustDomain:
		*x = spiffeid.RequireTrustDomainFromString(fmt.Sprintf("td%03d", *n))
		return
	case *time.Time:
		*x = time.Unix(int64(1_000_000+*n), 0).UTC()
		return
	case *time.Duration:
		*x = time.Duration(*n) * time.Second
		return
	case *store.Revision:
		*x = store.Revision(*n)
		return
	case *[]byte:
		*x = []byte(fmt.Sprintf("bytes %d", *n))
		return
	case *attest.Selectors:
		*x = sel(fmt.Sprintf("t%d:v", *n), fmt.Sprintf("u%d:w", *n))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text%d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	default:
		t.Fatalf("no distinct value for a %s", v.Type())
	}
}

func filled[T any](t testing.TB) *T {
	t.Helper()
	x, n := new(T), 0
	fill(t, reflect.ValueOf(x).Elem(), &n)
	return x
}

// variants are the filled value and, for each boolean in it, a copy in which
// only that one is false: a boolean copied from another one shows.
func variants[T any](t testing.TB, clone func(*T) *T) []*T {
	t.Helper()
	whole := filled[T](t)
	out := []*T{whole}
	var bools func(path []int, v reflect.Type)
	set := func(path []int) {
		x := clone(whole)
		v := reflect.ValueOf(x).Elem()
		for _, i := range path {
			if v.Kind() == reflect.Pointer {
				v = v.Elem()
			}
			v = v.Field(i)
		}
		v.SetBool(false)
		out = append(out, x)
	}
	bools = func(path []int, typ reflect.Type) {
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() == reflect.Bool {
			set(path)
		}
		if typ.Kind() != reflect.Struct || typ.PkgPath() != reflect.TypeFor[Entry]().PkgPath() {
			return
		}
		for i := range typ.NumField() {
			bools(append(append([]int(nil), path...), i), typ.Field(i).Type)
		}
	}
	bools(nil, reflect.TypeFor[T]())
	return out
}

// S15: every field survives clone, store and wire, each with a value of its own.
func TestS15_EntryRoundTrips(t *testing.T) {
	t.Parallel()
	list := variants(t, (*Entry).Clone)
	if len(list) != 1+5 {
		t.Fatalf("want one variant for each of 5 booleans, got %d variants", len(list))
	}
	for _, want := range list {
		if diff := cmp.Diff(want, want.Clone(), comparing); diff != "" {
			t.Errorf("clone (-want +got):\n%s", diff)
		}
		value, err := encodeEntry(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeEntry(store.KV{Key: entryKey(want.ID), Value: value, ModRevision: want.ModRevision})
		if diff := cmp.Diff(want, got, comparing); err != nil || diff != "" {
			t.Errorf("store (-want +got): %v\n%s", err, diff)
		}
		// The selectors of the filled entry are of several types.
		wire := want.Clone()
		if wire.StoreSVID {
			wire.Selectors = wire.Selectors[:1]
		}
		got, err = EntryFromWire(td, wire.ToWire())
		if diff := cmp.Diff(wire, got, comparing, cmpopts.IgnoreFields(Entry{}, "ModRevision")); err != nil || diff != "" {
			t.Errorf("wire (-want +got): %v\n%s", err, diff)
		}
	}
	bare := list[0].Clone()
	bare.Attributes = nil
	value, err := encodeEntry(bare)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeEntry(store.KV{Key: entryKey(bare.ID), Value: value})
	if err != nil || got.Attributes != nil || bare.ToWire().GetAdditionalAttributes() != nil {
		t.Errorf("an entry without attributes: got %+v, %v", got.Attributes, err)
	}
}

// S15: every field of the record is written, too: none is left at zero by a
// filled entry.
func TestS15_RecordsAreFilled(t *testing.T) {
	t.Parallel()
	entry, err1 := encodeEntry(filled[Entry](t))
	agent, err2 := encodeAgent(filled[Agent](t))
	bundle, err3 := encodeBundle(filled[Bundle](t))
	token, err4 := encodeToken(filled[JoinToken](t))
	relationship, err5 := encodeRelationship(filled[FederationRelationship](t))
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		value  []byte
		record proto.Message
	}{
		{entry, &recordv1.Entry{}}, {agent, &recordv1.Agent{}}, {bundle, &recordv1.Bundle{}}, {token, &recordv1.JoinToken{}},
		{relationship, &recordv1.FederationRelationship{}},
	} {
		if err := proto.Unmarshal(tt.value, tt.record); err != nil {
			t.Fatal(err)
		}
		m := tt.record.ProtoReflect()
		for i := range m.Descriptor().Fields().Len() {
			if f := m.Descriptor().Fields().Get(i); !m.Has(f) {
				t.Errorf("%s is not written", f.FullName())
			}
		}
	}
	wire := filled[Entry](t).ToWire().ProtoReflect()
	for i := range wire.Descriptor().Fields().Len() {
		if f := wire.Descriptor().Fields().Get(i); !wire.Has(f) {
			t.Errorf("%s is not set", f.FullName())
		}
	}
}

func TestS15_AgentBundleTokenRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range variants(t, (*Agent).Clone) {
		if diff := cmp.Diff(want, want.Clone(), comparing); diff != "" {
			t.Errorf("clone (-want +got):\n%s", diff)
		}
		value, err := encodeAgent(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeAgent(td, store.KV{Key: agentKey(want.ID), Value: value, ModRevision: want.ModRevision})
		if diff := cmp.Diff(want, got, comparing); err != nil || diff != "" {
			t.Errorf("agent (-want +got): %v\n%s", err, diff)
		}
	}
	bundle := filled[Bundle](t)
	bundle.X509Authorities[1].Tainted, bundle.JWTAuthorities[0].Tainted, bundle.WITAuthorities[1].Tainted = false, false, false
	if diff := cmp.Diff(bundle, bundle.Clone(), comparing); diff != "" {
		t.Errorf("clone (-want +got):\n%s", diff)
	}
	value, err := encodeBundle(bundle)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeBundle(store.KV{Key: bundleKey(bundle.TrustDomain), Value: value, ModRevision: bundle.ModRevision})
	if diff := cmp.Diff(bundle, got, comparing); err != nil || diff != "" {
		t.Errorf("bundle (-want +got): %v\n%s", err, diff)
	}
	token := filled[JoinToken](t)
	value, err = encodeToken(token)
	if err != nil {
		t.Fatal(err)
	}
	gotToken, err := decodeToken(store.KV{Value: value})
	if diff := cmp.Diff(token, gotToken); err != nil || diff != "" {
		t.Errorf("token (-want +got): %v\n%s", err, diff)
	}
}

// A clone shares nothing that can be changed.
func TestClonesShareNothing(t *testing.T) {
	t.Parallel()
	e, b, a := filled[Entry](t), filled[Bundle](t), filled[Agent](t)
	ec, bc, ac := e.Clone(), b.Clone(), a.Clone()
	ec.Selectors[0].Value, ec.FederatesWith[0], ec.DNSNames[0] = "changed", other, "changed"
	ec.Attributes.JWTSVIDIncludeJTI = false
	bc.X509Authorities[0].DER[0], bc.JWTAuthorities[0].PKIX[0], bc.JWTAuthorities[1].KeyID = 0, 0, "changed"
	bc.WITAuthorities[0].PKIX[0], bc.WITAuthorities[1].KeyID = 0, "changed"
	ac.Selectors[0].Value = "changed"
	for _, diff := range []string{
		cmp.Diff(filled[Entry](t), e, comparing), cmp.Diff(filled[Bundle](t), b, comparing), cmp.Diff(filled[Agent](t), a, comparing),
	} {
		if diff != "" {
			t.Errorf("the original changed with its clone:\n%s", diff)
		}
	}
}

// Nothing half is ever decoded: every prefix of a record is refused, or is a
// whole record without the fields that were cut off.
func TestDecodeTruncated(t *testing.T) {
	t.Parallel()
	value, err := encodeEntry(filled[Entry](t))
	if err != nil {
		t.Fatal(err)
	}
	for n := range value {
		e, err := decodeEntry(store.KV{Key: "e/x", Value: value[:n]})
		if (e == nil) == (err == nil) {
			t.Fatalf("first %d bytes: got %v, %v", n, e, err)
		}
		if e != nil && (e.SPIFFEID.IsZero() || e.ParentID.IsZero() || len(e.Selectors) == 0) {
			t.Fatalf("first %d bytes: half an entry: %+v", n, e)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	valid := func() *recordv1.Entry {
		return &recordv1.Entry{
			SpiffeId: "spiffe://example.org/w", ParentId: "spiffe://example.org/p",
			Selectors: []*recordv1.Selector{{Type: "a", Value: "b"}},
		}
	}
	tests := map[string]func(*recordv1.Entry){
		"no SPIFFE ID":         func(e *recordv1.Entry) { e.SpiffeId = "" },
		"bad SPIFFE ID":        func(e *recordv1.Entry) { e.SpiffeId = "spiffe://example.org/../x" },
		"no parent":            func(e *recordv1.Entry) { e.ParentId = "" },
		"bad parent":           func(e *recordv1.Entry) { e.ParentId = "http://x" },
		"no selectors":         func(e *recordv1.Entry) { e.Selectors = nil },
		"half a selector":      func(e *recordv1.Entry) { e.Selectors[0].Value = "" },
		"bad selector type":    func(e *recordv1.Entry) { e.Selectors[0].Type = "a:b" },
		"bad trust domain":     func(e *recordv1.Entry) { e.FederatesWith = []string{"UPPER"} },
		"empty trust domain":   func(e *recordv1.Entry) { e.FederatesWith = []string{""} },
		"selector of a secret": func(e *recordv1.Entry) { e.Selectors[0].Type, e.Selectors[0].Value = "", "canary" },
	}
	for name, breakIt := range tests {
		r := valid()
		breakIt(r)
		value, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		e, err := decodeEntry(store.KV{Key: "e/the-id", Value: value})
		if e != nil || err == nil || !strings.Contains(err.Error(), "the-id") || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: want an error naming the entry, got %v, %v", name, e, err)
		}
	}
	for _, kv := range []store.KV{
		{Key: "a/spire/agent/x/y"},
		{Key: "a/spire//y", Value: []byte{}},
		{Key: "a/spire/agent/x/y", Value: []byte{0xff}},
	} {
		if a, err := decodeAgent(td, kv); err == nil {
			t.Errorf("agent %q: got %+v", kv.Key, a)
		}
	}
	bundle, _ := proto.Marshal(&recordv1.Bundle{X509Authorities: []*recordv1.X509Authority{{}}})
	keyless, _ := proto.Marshal(&recordv1.Bundle{JwtAuthorities: []*recordv1.JWTAuthority{{KeyId: "x"}}})
	witless, _ := proto.Marshal(&recordv1.Bundle{WitAuthorities: []*recordv1.WITAuthority{{PublicKey: []byte{1}}}})
	for _, kv := range []store.KV{{Key: "b/"}, {Key: "b/UP"}, {Key: "b/x", Value: bundle}, {Key: "b/x", Value: keyless}, {Key: "b/x", Value: witless}, {Key: "b/x", Value: []byte{0xff}}} {
		if b, err := decodeBundle(kv); err == nil {
			t.Errorf("bundle %q: got %+v", kv.Key, b)
		}
	}
	if tok, err := decodeToken(store.KV{}); err == nil {
		t.Errorf("empty token: got %+v", tok)
	}
	if x, err := parseExpiry(store.KV{Key: "x/short"}); err == nil {
		t.Errorf("short expiry: got %+v", x)
	}
}

// FuzzDecodeEntry holds the decoder against the generated one: it never
// panics, never gives half an entry, and what it gives is what protobuf reads.
func FuzzDecodeEntry(f *testing.F) {
	value, err := encodeEntry(filled[Entry](f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add(value[:len(value)/2])
	f.Add([]byte{})
	f.Add(protowire.AppendTag(nil, 3, protowire.StartGroupType))
	f.Add(bytes.Repeat(value, 2))
	f.Fuzz(func(t *testing.T, value []byte) {
		e, err := decodeEntry(store.KV{Key: "e/x", Value: value})
		if err != nil {
			return
		}
		var r recordv1.Entry
		if err := proto.Unmarshal(value, &r); err != nil {
			t.Fatalf("decoded what is not an entry (%v): %+v", err, e)
		}
		again, err := encodeEntry(e)
		if err != nil {
			return // Larger than is allowed.
		}
		var got recordv1.Entry
		if err := proto.Unmarshal(again, &got); err != nil {
			t.Fatal(err)
		}
		if got.GetSpiffeId() != r.GetSpiffeId() || got.GetParentId() != r.GetParentId() || got.GetHint() != r.GetHint() ||
			got.GetAdmin() != r.GetAdmin() || got.GetDownstream() != r.GetDownstream() || got.GetStoreSvid() != r.GetStoreSvid() ||
			got.GetX509SvidTtl() != r.GetX509SvidTtl() || got.GetJwtSvidTtl() != r.GetJwtSvidTtl() ||
			got.GetExpiresAt() != r.GetExpiresAt() || got.GetCreatedAt() != r.GetCreatedAt() ||
			got.GetRevisionNumber() != r.GetRevisionNumber() || got.GetHasAdditionalAttributes() != r.GetHasAdditionalAttributes() ||
			!cmp.Equal(got.GetDnsNames(), r.GetDnsNames(), cmpopts.EquateEmpty()) {
			t.Errorf("decoded %v\nprotobuf reads %v", &got, &r)
		}
	})
}

func BenchmarkPackEntry(b *testing.B) {
	e := newEntry("/spire/agent/x/1", "/ns/default/sa/web", "k8s:ns:default", "k8s:sa:web")
	value, err := encodeEntry(e)
	if err != nil {
		b.Fatal(err)
	}
	var p packer
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.entry(store.KV{Key: "e/0197a5e0-0000-7000-8000-000000000000", Value: value}); err != nil {
			b.Fatal(err)
		}
	}
}
