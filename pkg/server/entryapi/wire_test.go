package entryapi

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
)

// full has every field set, no two of them alike.
func full() *registry.Entry {
	return &registry.Entry{
		ID:            "entry-1",
		SPIFFEID:      spiffeid.RequireFromPath(td, "/workload"),
		ParentID:      spiffeid.RequireFromPath(td, "/parent"),
		Selectors:     attest.NewSelectors(attest.Selector{Type: "unix", Value: "uid:0"}, attest.Selector{Type: "k8s", Value: "ns:x"}),
		X509SVIDTTL:   time.Hour,
		JWTSVIDTTL:    5 * time.Minute,
		FederatesWith: []spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("a.test"), spiffeid.RequireTrustDomainFromString("b.test")},
		DNSNames:      []string{"one.test", "two.test"},
		Admin:         true, Downstream: true, StoreSVID: true,
		Hint:           "internal",
		ExpiresAt:      time.Unix(4102444800, 0).UTC(),
		CreatedAt:      time.Unix(1700000000, 0).UTC(),
		RevisionNumber: 300,
		Attributes:     &registry.Attributes{DisableX509SVIDPrefetch: true, JWTSVIDIncludeJTI: true},
	}
}

// masks are nil, none, all, and each field alone.
func masks() map[string]*types.EntryMask {
	out := map[string]*types.EntryMask{"nil": nil, "none": {}, "all": allFields}
	fields := (&types.EntryMask{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		m := &types.EntryMask{}
		m.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfBool(true))
		out[string(fields.Get(i).Name())] = m
	}
	return out
}

// TestS15_MaskAndWireKeepEveryField holds what is sent against what the entry
// is, field by field, by reflection: a field that is added to the message and
// forgotten here fails it.
func TestS15_MaskAndWireKeepEveryField(t *testing.T) {
	t.Parallel()
	e := full()
	all := e.ToWire()
	fields := all.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if !all.ProtoReflect().Has(fields.Get(i)) {
			t.Errorf("the test's entry does not set %s", fields.Get(i).Name())
		}
	}
	for name, mask := range masks() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := &types.Entry{Id: e.ID}
			for i := range fields.Len() {
				fd := fields.Get(i)
				if fd.Name() != "id" && named(mask, fd.Name()) {
					want.ProtoReflect().Set(fd, all.ProtoReflect().Get(fd))
				}
			}
			if diff := cmp.Diff(want, show(e, mask), protocmp.Transform()); diff != "" {
				t.Errorf("show (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, decodeOne(t, newAppender(listEntries, mask).append(nil, e.Pack())), protocmp.Transform()); diff != "" {
				t.Errorf("append (-want +got):\n%s", diff)
			}
		})
	}
}

func named(mask *types.EntryMask, field protoreflect.Name) bool {
	if mask == nil {
		return true
	}
	m := mask.ProtoReflect()
	return m.Get(m.Descriptor().Fields().ByName(field)).Bool()
}

func decodeOne(t *testing.T, raw []byte) *types.Entry {
	t.Helper()
	var list entryv1.ListEntriesResponse
	if err := proto.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Entries) != 1 || len(list.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("decoded %v", &list)
	}
	return list.Entries[0]
}

func TestAppendEntrySizes(t *testing.T) {
	t.Parallel()
	// Around the sizes where a length takes one byte more.
	for _, n := range []int{0, 1, 100, 126, 127, 128, 129, 1 << 14, 1<<14 - 20, 1 << 18} {
		e := full()
		e.Hint = strings.Repeat("h", n)
		e.DNSNames, e.Attributes = nil, &registry.Attributes{}
		e.ExpiresAt = time.Time{}
		raw := newAppender(listEntries, nil).append([]byte{}, e.Pack())
		if diff := cmp.Diff(e.ToWire(), decodeOne(t, raw), protocmp.Transform()); diff != "" {
			t.Errorf("hint of %d bytes (-want +got):\n%s", n, diff)
		}
	}
	// Every size of message from 0 to beyond two bytes of length.
	for n := (1 << 14) - 300; n < (1<<14)+300; n++ {
		e := &registry.Entry{ID: "x", SPIFFEID: full().SPIFFEID, ParentID: full().ParentID, Hint: strings.Repeat("h", n)}
		if got := decodeOne(t, newAppender(listEntries, nil).append(nil, e.Pack())); got.Hint != e.Hint || got.ParentId.GetPath() != "/parent" {
			t.Fatalf("hint of %d bytes came back with %d", n, len(got.Hint))
		}
	}
}

func BenchmarkAppendEntry(b *testing.B) {
	e, to := full().Pack(), newAppender(listEntries, nil)
	raw := make([]byte, 0, 1<<10)
	b.ReportAllocs()
	for b.Loop() {
		raw = to.append(raw[:0], e)
	}
	b.SetBytes(int64(len(raw)))
}

// FuzzEntryOnTheWire takes any message as a registration. What the registry
// would accept is written as bytes exactly as the message that it makes of it.
func FuzzEntryOnTheWire(f *testing.F) {
	for _, e := range []*types.Entry{full().ToWire(), entry("/one"), {}} {
		raw, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, uint16(0xffff))
		f.Add(raw, uint16(0x5555))
	}
	fields := (&types.EntryMask{}).ProtoReflect().Descriptor().Fields()
	f.Fuzz(func(t *testing.T, raw []byte, bits uint16) {
		var m types.Entry
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		e, err := registry.EntryFromWire(td, &m)
		if err != nil {
			return
		}
		mask := &types.EntryMask{}
		for i := range fields.Len() {
			mask.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfBool(bits>>i&1 != 0))
		}
		if diff := cmp.Diff(show(e, mask), decodeOne(t, newAppender(listEntries, mask).append(nil, e.Pack())), protocmp.Transform()); diff != "" {
			t.Errorf("(-message +bytes):\n%s", diff)
		}
	})
}
