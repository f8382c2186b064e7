package feedapi

import (
	"fmt"
	"sync"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Field numbers of credence.feed.v1.Delta whose elements are appended encoded,
// and of EntryVersion.
const (
	fieldUpserts protowire.Number = 3
	fieldBundles protowire.Number = 5

	fieldEntry    protowire.Number = 1
	fieldRevision protowire.Number = 2
)

// maxMessage bounds one Delta, in bytes; one entry or bundle that is larger on
// its own still goes, alone. It is small because every stream whose agent reads
// slowly holds a message: thousands of agents that are sent everything at once
// must fit into memory.
const maxMessage = 64 << 10

// wireCacheBytes bounds the wire forms that are kept, in bytes of their content.
const wireCacheBytes = 16 << 20

// wireCache keeps the encoded form of the bundles sent last, so that a change
// that reaches thousands of agents is encoded once. It has two generations: when
// the young one is full it becomes the old one, and the old one is forgotten.
type wireCache struct {
	mu    sync.Mutex
	young map[*registry.Bundle][]byte
	old   map[*registry.Bundle][]byte
	size  int // bytes in young
}

// bundle is the bundle as an element of Delta.bundles, tag included.
func (c *wireCache) bundle(b *registry.Bundle) ([]byte, error) {
	if raw := c.get(b); raw != nil {
		return raw, nil
	}
	body, err := proto.Marshal(&feedv1.BundleState{Bundle: b.ToWire(), Revision: uint64(b.ModRevision)})
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle of %s: %w", b.TrustDomain, err)
	}
	raw := protowire.AppendTag(nil, fieldBundles, protowire.BytesType)
	raw = protowire.AppendBytes(raw, body)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(b, raw)
	return raw, nil
}

func (c *wireCache) get(key *registry.Bundle) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.young[key]; ok {
		return b
	}
	b, ok := c.old[key]
	if ok {
		c.keep(key, b)
	}
	return b
}

// keep is called with mu held.
func (c *wireCache) keep(key *registry.Bundle, b []byte) {
	if c.young == nil || c.size+len(b) > wireCacheBytes/2 {
		c.young, c.old, c.size = make(map[*registry.Bundle][]byte), c.young, 0
	}
	c.young[key] = b
	c.size += len(b)
}

// chunks collects a change of one revision and sends it in messages of at most
// maxMessage bytes. The upserts and bundles of a Delta are appended in encoded
// form: bytes that protobuf does not know are written after the known fields as
// they are, and repeated elements may come in any place of a message.
type chunks struct {
	send     func(*feedv1.WatchResponse) error
	revision store.Revision

	delta *feedv1.Delta
	raw   []byte
	size  int // of what delta holds beside raw
	begun bool
}

// entry appends an entry to the upserts.
func (c *chunks) entry(p *registry.Packed) error {
	rev := uint64(p.ModRevision())
	size := protowire.SizeTag(fieldEntry) + protowire.SizeBytes(len(p.Wire())) +
		protowire.SizeTag(fieldRevision) + protowire.SizeVarint(rev)
	if err := c.room(protowire.SizeTag(fieldUpserts) + protowire.SizeBytes(size)); err != nil {
		return err
	}
	b := protowire.AppendTag(c.raw, fieldUpserts, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendTag(b, fieldEntry, protowire.BytesType)
	b = protowire.AppendString(b, p.Wire())
	b = protowire.AppendTag(b, fieldRevision, protowire.VarintType)
	c.raw = protowire.AppendVarint(b, rev)
	return nil
}

func (c *chunks) encoded(b []byte) error {
	if err := c.room(len(b)); err != nil {
		return err
	}
	c.raw = append(c.raw, b...)
	return nil
}

func (c *chunks) resync(buckets []uint32) {
	d := c.open()
	d.Resync = buckets
	c.size += 2 * len(buckets)
}

func (c *chunks) remove(entryID string) error {
	if err := c.room(len(entryID) + 4); err != nil {
		return err
	}
	d := c.open()
	d.Removes = append(d.Removes, entryID)
	c.size += len(entryID) + 4
	return nil
}

func (c *chunks) removeBundle(trustDomain string) error {
	if err := c.room(len(trustDomain) + 4); err != nil {
		return err
	}
	d := c.open()
	d.RemovedBundles = append(d.RemovedBundles, trustDomain)
	c.size += len(trustDomain) + 4
	return nil
}

func (c *chunks) open() *feedv1.Delta {
	if c.delta == nil {
		c.delta = &feedv1.Delta{Revision: uint64(c.revision)}
		c.begun = true
	}
	return c.delta
}

// room makes place for n bytes more, by sending what was collected if need be.
func (c *chunks) room(n int) error {
	if have := c.size + len(c.raw); have > 0 && have+n > maxMessage {
		return c.flush(true)
	}
	c.open()
	return nil
}

// end sends what is left. Nothing is sent when there was nothing.
func (c *chunks) end() error {
	if !c.begun {
		return nil
	}
	return c.flush(false)
}

func (c *chunks) flush(more bool) error {
	d := c.open()
	d.More = more
	d.ProtoReflect().SetUnknown(protoreflect.RawFields(c.raw))
	// The message is encoded before send returns, so raw is free again.
	err := c.send(&feedv1.WatchResponse{Step: &feedv1.WatchResponse_Delta{Delta: d}})
	c.delta, c.raw, c.size = nil, c.raw[:0], 0
	if err != nil {
		return fmt.Errorf("sending a delta: %w", err)
	}
	return nil
}
