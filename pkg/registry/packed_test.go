package registry

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/attest"
)

// checkPacked holds a packed entry against the entry: taken apart again, as the
// message it is, and asked for its parts.
func checkPacked(t testing.TB, want *Entry) {
	t.Helper()
	p := want.Pack()
	comparing := []cmp.Option{cmp.AllowUnexported(spiffeid.ID{}, spiffeid.TrustDomain{}), cmpopts.EquateEmpty()}
	if diff := cmp.Diff(want, p.Entry(), comparing...); diff != "" {
		t.Errorf("taken apart (-want +got):\n%s", diff)
	}
	var wire types.Entry
	if err := proto.Unmarshal([]byte(p.Wire()), &wire); err != nil || len(wire.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("not the message: %v", err)
	}
	if diff := cmp.Diff(want.ToWire(), &wire, protocmp.Transform()); diff != "" {
		t.Errorf("the message (-want +got):\n%s", diff)
	}
	td, path := p.SPIFFEID()
	parentTD, parentPath := p.ParentID()
	hinted := want.Hint
	if p.ID() != want.ID || p.ModRevision() != want.ModRevision || p.hint() != hinted ||
		td != want.SPIFFEID.TrustDomain().Name() || path != want.SPIFFEID.Path() ||
		parentTD != want.ParentID.TrustDomain().Name() || parentPath != want.ParentID.Path() ||
		p.IsAlias() != want.IsAlias() || p.Expires() == want.ExpiresAt.IsZero() || p.Federates() != (len(want.FederatesWith) > 0) ||
		!p.Selectors().Equal(want.Selectors) || !slices.Equal(p.FederatesWith(), want.FederatesWith) {
		t.Errorf("parts of %+v are others", want)
	}
	for _, now := range []time.Time{{}, want.ExpiresAt, want.ExpiresAt.Add(-time.Second), time.Unix(1<<40, 0)} {
		if p.Expired(now) != want.Expired(now) {
			t.Errorf("expired at %v: %t", now, p.Expired(now))
		}
	}
	o := newOrders()
	for i, x := range o.bySelector.items(nil, p) {
		if x.selector() != want.Selectors[i] {
			t.Errorf("selector %d of %+v", i, want)
		}
	}
	for i, x := range o.byDomain.items(nil, p) {
		if x.text() != want.FederatesWith[i].Name() {
			t.Errorf("trust domain %d of %+v", i, want)
		}
	}
}

func TestPackedIsTheEntry(t *testing.T) {
	t.Parallel()
	for _, e := range append(variants(t, (*Entry).Clone), &Entry{}, &Entry{ID: "x", ParentID: ServerID(td)}) {
		checkPacked(t, e)
	}
	// Lengths around those that take a byte more, of texts and of messages.
	for _, n := range []int{1, 100, 119, 120, 125, 126, 127, 128, 129, 1<<14 - 1, 1 << 14, 1<<14 + 1, 1 << 18} {
		e := filled[Entry](t)
		text := strings.Repeat("x", n)
		e.ID, e.Hint, e.DNSNames = text, text, []string{text}
		e.SPIFFEID, e.ParentID = id("/"+text), id("/p/"+text)
		e.Selectors = attest.NewSelectors(attest.Selector{Type: "a", Value: text}, attest.Selector{Type: text, Value: "b"})
		e.ExpiresAt = time.Unix(int64(n), 0).UTC()
		checkPacked(t, e)
	}
}

// What a record on disk is packed to is what it is decoded to, also by a packer
// that has packed others.
func TestPackerKeepsNothing(t *testing.T) {
	t.Parallel()
	var p packer
	list := append(variants(t, (*Entry).Clone), newEntry("/p", "/w"), filled[Entry](t), newEntry("/p", "/v", "a:b", "c:d"))
	for i, e := range list {
		e.ID = fmt.Sprint("e", i)
		value, err := encodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		want, err := decodeEntry(kvOf(e.ID, value))
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.entry(kvOf(e.ID, value))
		if err != nil || got.Wire() != want.Pack().Wire() {
			t.Errorf("entry %d: %v, packed %q, want %q", i, err, got.Wire(), want.Pack().Wire())
		}
	}
}
