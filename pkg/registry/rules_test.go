package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/attest"
)

func wireEntry() *types.Entry { return newEntry("/parent", "/w").ToWire() }

// S08: each limit at one less, at itself, and at one more.
func TestS08_EntryRules(t *testing.T) {
	t.Parallel()
	at := func(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: "example.org", Path: path} }
	label := strings.Repeat("a", 63)
	name253 := strings.Repeat(label+".", 3) + strings.Repeat("a", 61)
	tests := []struct {
		name  string
		set   func(*types.Entry)
		field string // of the InvalidError; empty if the entry is fine
	}{
		{"as it is", func(*types.Entry) {}, ""},
		{"no SPIFFE ID", func(e *types.Entry) { e.SpiffeId = nil }, "spiffe_id"},
		{"empty SPIFFE ID", func(e *types.Entry) { e.SpiffeId = &types.SPIFFEID{} }, "spiffe_id"},
		{"no path", func(e *types.Entry) { e.SpiffeId = at("") }, "spiffe_id"},
		{"no slash", func(e *types.Entry) { e.SpiffeId = at("w") }, "spiffe_id"},
		{"dots", func(e *types.Entry) { e.SpiffeId = at("/a/../b") }, "spiffe_id"},
		{"reserved", func(e *types.Entry) { e.SpiffeId = at("/spire") }, "spiffe_id"},
		{"reserved below", func(e *types.Entry) { e.SpiffeId = at("/spire/server") }, "spiffe_id"},
		{"not reserved", func(e *types.Entry) { e.SpiffeId = at("/spirex") }, ""},
		{"foreign SPIFFE ID", func(e *types.Entry) { e.SpiffeId.TrustDomain = "other.org" }, "spiffe_id"},
		{"no parent", func(e *types.Entry) { e.ParentId = nil }, "parent_id"},
		{"parent without path", func(e *types.Entry) { e.ParentId = at("") }, "parent_id"},
		{"parent is the server", func(e *types.Entry) { e.ParentId = at("/spire/server") }, ""},
		{"parent is an agent", func(e *types.Entry) { e.ParentId = at("/spire/agent/x/y") }, ""},
		{"foreign parent", func(e *types.Entry) { e.ParentId.TrustDomain = "other.org" }, "parent_id"},
		{"no selectors", func(e *types.Entry) { e.Selectors = nil }, "selectors"},
		{"nil selector", func(e *types.Entry) { e.Selectors = []*types.Selector{nil} }, "selectors"},
		{"colon in type", func(e *types.Entry) { e.Selectors[0].Type = "a:b" }, "selectors"},
		{"value at its limit", func(e *types.Entry) { e.Selectors[0].Value = strings.Repeat("x", attest.MaxSelectorValue) }, ""},
		{"value beyond", func(e *types.Entry) { e.Selectors[0].Value = strings.Repeat("x", attest.MaxSelectorValue+1) }, "selectors"},
		{"selectors at their limit", func(e *types.Entry) { e.Selectors = manySelectors(attest.MaxSelectors) }, ""},
		{"selectors beyond", func(e *types.Entry) { e.Selectors = manySelectors(attest.MaxSelectors + 1) }, "selectors"},
		{"store_svid of one type", func(e *types.Entry) { e.StoreSvid = true; e.Selectors = manySelectors(3) }, ""},
		{"store_svid of two", func(e *types.Entry) { e.StoreSvid = true; e.Selectors = append(e.Selectors, manySelectors(1)...) }, "selectors"},
		{"X.509 TTL negative", func(e *types.Entry) { e.X509SvidTtl = -1 }, "x509_svid_ttl"},
		{"X.509 TTL largest", func(e *types.Entry) { e.X509SvidTtl = math.MaxInt32 }, ""},
		{"JWT TTL negative", func(e *types.Entry) { e.JwtSvidTtl = -1 }, "jwt_svid_ttl"},
		{"own trust domain", func(e *types.Entry) { e.FederatesWith = []string{"other.org", "example.org"} }, "federates_with"},
		{"bad trust domain", func(e *types.Entry) { e.FederatesWith = []string{"Other"} }, "federates_with"},
		{"empty trust domain", func(e *types.Entry) { e.FederatesWith = []string{""} }, "federates_with"},
		{"trust domain as an ID", func(e *types.Entry) { e.FederatesWith = []string{"spiffe://other.org"} }, ""},
		{"DNS names", func(e *types.Entry) { e.DnsNames = []string{"a", "a-b.c1", "*.example.com", "xn--bcher-kva.example"} }, ""},
		{"DNS name empty", func(e *types.Entry) { e.DnsNames = []string{""} }, "dns_names"},
		{"DNS label 63", func(e *types.Entry) { e.DnsNames = []string{label} }, ""},
		{"DNS label 64", func(e *types.Entry) { e.DnsNames = []string{label + "a"} }, "dns_names"},
		{"DNS name 253", func(e *types.Entry) { e.DnsNames = []string{name253} }, ""},
		{"DNS name 254", func(e *types.Entry) { e.DnsNames = []string{name253 + "a"} }, "dns_names"},
		{"DNS trailing dot", func(e *types.Entry) { e.DnsNames = []string{"a."} }, "dns_names"},
		{"DNS lone star", func(e *types.Entry) { e.DnsNames = []string{"*"} }, "dns_names"},
		{"DNS inner star", func(e *types.Entry) { e.DnsNames = []string{"a.*.b"} }, "dns_names"},
		{"DNS hyphen first", func(e *types.Entry) { e.DnsNames = []string{"-a"} }, "dns_names"},
		{"DNS hyphen last", func(e *types.Entry) { e.DnsNames = []string{"a-"} }, "dns_names"},
		{"DNS underscore", func(e *types.Entry) { e.DnsNames = []string{"_a_.b_c"} }, ""},
		{"DNS not ASCII", func(e *types.Entry) { e.DnsNames = []string{"bücher"} }, "dns_names"},
		{"hint 1023", func(e *types.Entry) { e.Hint = strings.Repeat("h", 1023) }, ""},
		{"hint 1024", func(e *types.Entry) { e.Hint = strings.Repeat("h", 1024) }, ""},
		{"hint 1025", func(e *types.Entry) { e.Hint = strings.Repeat("h", 1025) }, "hint"},
		{"SPIFFE ID 2048", func(e *types.Entry) { e.SpiffeId = at("/" + strings.Repeat("p", 2048-len("spiffe://example.org/"))) }, ""},
		{"SPIFFE ID 2049", func(e *types.Entry) { e.SpiffeId = at("/" + strings.Repeat("p", 2049-len("spiffe://example.org/"))) }, "spiffe_id"},
		{"DNS names 256", func(e *types.Entry) { e.DnsNames = slices.Repeat([]string{"a"}, 256) }, ""},
		{"DNS names 257", func(e *types.Entry) { e.DnsNames = slices.Repeat([]string{"a"}, 257) }, "dns_names"},
		{"expiry latest", func(e *types.Entry) { e.ExpiresAt = 253402300799 }, ""},
		{"expiry in the year 10000", func(e *types.Entry) { e.ExpiresAt = 253402300800 }, "expires_at"},
		{"expiry beyond what time can hold", func(e *types.Entry) { e.ExpiresAt = math.MaxInt64 }, "expires_at"},
		{"expiry negative", func(e *types.Entry) { e.ExpiresAt = -1 }, "expires_at"},
		{"id 254", func(e *types.Entry) { e.Id = strings.Repeat("i", 254) }, ""},
		{"id 255", func(e *types.Entry) { e.Id = strings.Repeat("i", 255) }, ""},
		{"id 256", func(e *types.Entry) { e.Id = strings.Repeat("i", 256) }, "id"},
		{"id alphabet", func(e *types.Entry) { e.Id = "azAZ09-_." }, ""},
		{"id with slash", func(e *types.Entry) { e.Id = "a/b" }, "id"},
		{"id with space", func(e *types.Entry) { e.Id = "a b" }, "id"},
		{"id not ASCII", func(e *types.Entry) { e.Id = "é" }, "id"},
	}
	for _, tt := range tests {
		w := wireEntry()
		tt.set(w)
		e, err := EntryFromWire(td, w)
		if tt.field == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		bad, ok := errors.AsType[*InvalidError](err)
		if !ok || !errors.Is(err, ErrInvalid) || bad.Field != tt.field || bad.Rule == "" {
			t.Errorf("%s: want an InvalidError of %s, got %+v, %v", tt.name, tt.field, e, err)
		}
	}
	if _, err := EntryFromWire(td, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no entry: got %v", err)
	}
}

func manySelectors(n int) []*types.Selector {
	out := make([]*types.Selector, n)
	for i := range out {
		out[i] = &types.Selector{Type: "x", Value: strings.Repeat("v", i+1)}
	}
	return out
}

// Rules that the wire cannot break.
func TestValidateEntry(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*Entry){
		"x509_svid_ttl":  func(e *Entry) { e.X509SVIDTTL = time.Millisecond },
		"jwt_svid_ttl":   func(e *Entry) { e.JWTSVIDTTL = (math.MaxInt32 + 1) * time.Second },
		"selectors":      func(e *Entry) { e.Selectors = attest.Selectors{{Type: "b", Value: "1"}, {Type: "a", Value: "1"}} },
		"federates_with": func(e *Entry) { e.FederatesWith = []spiffeid.TrustDomain{{}} },
	}
	for field, set := range tests {
		e := newEntry("/p", "/w")
		set(e)
		if bad, ok := errors.AsType[*InvalidError](e.Validate(td)); !ok || bad.Field != field {
			t.Errorf("%s: got %v", field, e.Validate(td))
		}
	}
}

func TestValidateAgent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		set   func(*Agent)
		field string
	}{
		{"as it is", func(*Agent) {}, ""},
		{"no selectors", func(a *Agent) { a.Selectors = nil }, ""},
		{"no ID", func(a *Agent) { a.ID = spiffeid.ID{} }, "id"},
		{"workload's ID", func(a *Agent) { a.ID = id("/w") }, "id"},
		{"server's ID", func(a *Agent) { a.ID = id("/spire/server") }, "id"},
		{"no method", func(a *Agent) { a.ID = id("/spire/agent/x") }, "id"},
		{"foreign", func(a *Agent) { a.ID = spiffeid.RequireFromPath(other, "/spire/agent/x/y") }, "id"},
		{"path 1000", func(a *Agent) { a.ID = id("/spire/agent/x/" + strings.Repeat("y", 1000-15)) }, ""},
		{"path 1001", func(a *Agent) { a.ID = id("/spire/agent/x/" + strings.Repeat("y", 1001-15)) }, "id"},
		{"no type", func(a *Agent) { a.AttestationType = "" }, "attestation_type"},
		{"bad selector", func(a *Agent) { a.Selectors = attest.Selectors{{Type: "x"}} }, "selectors"},
	}
	for _, tt := range tests {
		a := newAgent("x")
		tt.set(a)
		err := a.Validate(td)
		if bad, ok := errors.AsType[*InvalidError](err); ok != (tt.field != "") || ok && bad.Field != tt.field || !ok && err != nil {
			t.Errorf("%s: want field %q, got %v", tt.name, tt.field, err)
		}
	}
}

func TestAgentToWire(t *testing.T) {
	t.Parallel()
	a := filled[Agent](t)
	want := &types.Agent{
		Id:                   &types.SPIFFEID{TrustDomain: "example.org", Path: a.ID.Path()},
		AttestationType:      a.AttestationType,
		X509SvidSerialNumber: a.Serial,
		X509SvidExpiresAt:    a.NotAfter.Unix(),
		Selectors:            []*types.Selector{{Type: a.Selectors[0].Type, Value: "v"}, {Type: a.Selectors[1].Type, Value: "w"}},
		Banned:               true,
		CanReattest:          true,
		AgentVersion:         a.Version,
	}
	if got := a.ToWire(); !proto.Equal(want, got) {
		t.Errorf("want %v, got %v", want, got)
	}
}

func TestBundleFromWire(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	valid := func() *types.Bundle {
		return &types.Bundle{
			TrustDomain:     "other.org",
			X509Authorities: []*types.X509Certificate{{Asn1: cert}, {Asn1: cert, Tainted: true}},
			JwtAuthorities:  []*types.JWTKey{{KeyId: "k", PublicKey: pkix, ExpiresAt: 77, Tainted: true}, {KeyId: "l", PublicKey: pkix}},
			RefreshHint:     60,
			SequenceNumber:  5,
		}
	}
	b, err := BundleFromWire(valid())
	if err != nil {
		t.Fatal(err)
	}
	if got := b.ToWire(); !proto.Equal(valid(), got) {
		t.Errorf("round trip: want %v, got %v", valid(), got)
	}
	tests := []struct {
		field string
		set   func(*types.Bundle)
	}{
		{"trust_domain", func(b *types.Bundle) { b.TrustDomain = "" }},
		{"refresh_hint", func(b *types.Bundle) { b.RefreshHint = -1 }},
		{"refresh_hint", func(b *types.Bundle) { b.RefreshHint = math.MaxInt64 }},
		{"x509_authorities", func(b *types.Bundle) { b.X509Authorities[0].Asn1 = nil }},
		{"x509_authorities", func(b *types.Bundle) { b.X509Authorities[0].Asn1 = append(cert, 0) }},
		{"x509_authorities", func(b *types.Bundle) { b.X509Authorities[1].Asn1 = cert[:20] }},
		{"jwt_authorities", func(b *types.Bundle) { b.JwtAuthorities[0].KeyId = "" }},
		{"jwt_authorities", func(b *types.Bundle) { b.JwtAuthorities[0].PublicKey = pkix[1:] }},
		{"jwt_authorities", func(b *types.Bundle) { b.JwtAuthorities[1].ExpiresAt = -1 }},
		{"wit_authorities", func(b *types.Bundle) { b.WitAuthorities = []*types.WITKey{{}} }},
	}
	for _, tt := range tests {
		w := valid()
		tt.set(w)
		_, err := BundleFromWire(w)
		if bad, ok := errors.AsType[*InvalidError](err); !ok || bad.Field != tt.field {
			t.Errorf("%s: got %v", tt.field, err)
		}
	}
	if _, err := BundleFromWire(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no bundle: got %v", err)
	}
}

func TestUniqueKeyTellsTuplesApart(t *testing.T) {
	t.Parallel()
	list := []*Entry{
		newEntry("/a", "/b", "x:1", "y:2"),
		newEntry("/a", "/b", "x:1"),
		newEntry("/a", "/b", "x:1y:2"),
		newEntry("/a", "/b", "x1:y"),
		newEntry("/b", "/a", "x:1"),
		newEntry("/a/b", "/b", "x:1"),
	}
	seen := map[string]int{}
	for i, e := range list {
		key := uniqueKey(e)
		if j, ok := seen[key]; ok {
			t.Errorf("entries %d and %d have the same key", i, j)
		}
		seen[key] = i
	}
	same := newEntry("/a", "/b", "y:2", "x:1")
	same.ID, same.Hint, same.Admin = "other", "h", true
	if uniqueKey(list[0]) != uniqueKey(same) {
		t.Error("similar entries have different keys")
	}
}

// FuzzEntryFromWire: whatever a client sends is refused or makes an entry that
// is stored and read back as it is.
func FuzzEntryFromWire(f *testing.F) {
	seed, err := proto.Marshal(filled[Entry](f).ToWire())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var w types.Entry
		if proto.Unmarshal(b, &w) != nil {
			return
		}
		e, err := EntryFromWire(td, &w)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("not an InvalidError: %v", err)
			}
			return
		}
		value, err := encodeEntry(e)
		if err != nil {
			return // Larger than is allowed.
		}
		got, err := decodeEntry(kvOf(e.ID, value))
		if diff := cmp.Diff(e, got, comparing); err != nil || diff != "" {
			t.Errorf("stored and read back (-want +got): %v\n%s", err, diff)
		}
	})
}
