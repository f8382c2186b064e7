package importer

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// digest is the SHA-256 of an item's canonical form.
type digest [sha256.Size]byte

func digestOf(canonical proto.Message) (digest, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(canonical)
	if err != nil {
		return digest{}, fmt.Errorf("encoding for comparison: %w", err)
	}
	return sha256.Sum256(data), nil
}

// sum is the digest over items by ID, in hexadecimal.
func sum(items map[string]digest) string {
	h := sha256.New()
	for _, id := range slices.Sorted(maps.Keys(items)) {
		d := items[id]
		fmt.Fprintf(h, "%d:%s", len(id), id)
		h.Write(d[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// canonicalEntry is what is copied of an entry: sets are sorted.
func canonicalEntry(e *types.Entry) *types.Entry {
	c := proto.CloneOf(e)
	c.RevisionNumber, c.CreatedAt = 0, 0
	slices.SortFunc(c.Selectors, func(a, b *types.Selector) int {
		return cmp.Or(strings.Compare(a.GetType(), b.GetType()), strings.Compare(a.GetValue(), b.GetValue()))
	})
	slices.Sort(c.FederatesWith)
	if a := c.GetAdditionalAttributes(); a != nil && proto.Size(a) == 0 {
		c.AdditionalAttributes = nil
	}
	return c
}

// canonicalBundle is what is copied of a bundle.
func canonicalBundle(b *types.Bundle) *types.Bundle {
	c := proto.CloneOf(b)
	c.SequenceNumber = 0
	slices.SortFunc(c.X509Authorities, func(a, b *types.X509Certificate) int { return bytes.Compare(a.GetAsn1(), b.GetAsn1()) })
	slices.SortFunc(c.JwtAuthorities, func(a, b *types.JWTKey) int { return strings.Compare(a.GetKeyId(), b.GetKeyId()) })
	slices.SortFunc(c.WitAuthorities, func(a, b *types.WITKey) int { return strings.Compare(a.GetKeyId(), b.GetKeyId()) })
	return c
}

// canonicalRelationship is what is copied of a relationship; its bundle is
// copied as a bundle.
func canonicalRelationship(r *types.FederationRelationship) *types.FederationRelationship {
	c := proto.CloneOf(r)
	c.TrustDomainBundle = nil
	return c
}

// differing names the fields in which two messages of one type differ.
func differing(a, b proto.Message) string {
	x, y := a.ProtoReflect(), b.ProtoReflect()
	var names []string
	fields := x.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !sameField(x, y, f) {
			names = append(names, string(f.Name()))
		}
	}
	return strings.Join(names, ", ")
}

func sameField(x, y protoreflect.Message, f protoreflect.FieldDescriptor) bool {
	return x.Has(f) == y.Has(f) && x.Get(f).Equal(y.Get(f))
}
