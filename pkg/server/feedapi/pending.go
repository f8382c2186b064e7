package feedapi

import (
	"math/bits"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxPending bounds the entries a stream remembers by ID. Past it the stream
// remembers the buckets they are in, which costs 32 bytes however many they are.
const maxPending = 256

// bucketSet is a set of bucket numbers.
type bucketSet [feedv1.Buckets / 64]uint64

func (b *bucketSet) add(i uint8)      { b[i/64] |= 1 << (i % 64) }
func (b *bucketSet) has(i uint8) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b *bucketSet) empty() bool      { return *b == bucketSet{} }
func (b *bucketSet) full() bool       { return *b == everyBucket }
func (b *bucketSet) addAll()          { *b = everyBucket }

var everyBucket = bucketSet{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}

// list is the set in order, as the wire wants it.
func (b *bucketSet) list() []uint32 {
	var out []uint32
	for w, word := range b {
		for ; word != 0; word &= word - 1 {
			out = append(out, uint32(w*64+bits.TrailingZeros64(word)))
		}
	}
	return out
}

// differing is the set of buckets whose sums are not the same. Held sums that
// are missing are those of an agent that holds nothing.
func differing(held []uint64, now *[feedv1.Buckets]uint64) bucketSet {
	var out bucketSet
	for i, sum := range now {
		if len(held) == 0 && sum != 0 || len(held) != 0 && held[i] != sum {
			out.add(uint8(i))
		}
	}
	return out
}

// pending is what may have changed for one agent since it was last sent
// something. The zero value is nothing.
type pending struct {
	entries map[string]struct{}
	buckets bucketSet
	bundles map[spiffeid.TrustDomain]struct{}
	// shrunk says that an entry that federated may federate with less, or not
	// be the agent's any more, so that a bundle may not be needed.
	shrunk bool
	// leave says that the agent is to be asked to go to another server.
	leave bool
}

func (p *pending) empty() bool {
	return len(p.entries) == 0 && p.buckets.empty() && len(p.bundles) == 0 && !p.shrunk && !p.leave
}

// addEntry marks one entry, by bucket when there are too many to name.
func (p *pending) addEntry(id string) {
	if !p.buckets.empty() {
		p.buckets.add(feedv1.Bucket(id))
		return
	}
	if p.entries == nil {
		p.entries = make(map[string]struct{})
	}
	p.entries[id] = struct{}{}
	if len(p.entries) <= maxPending {
		return
	}
	for id := range p.entries {
		p.buckets.add(feedv1.Bucket(id))
	}
	p.entries = nil
}

func (p *pending) addBuckets(b bucketSet) {
	for i, word := range b {
		p.buckets[i] |= word
	}
}

// addAll marks everything.
func (p *pending) addAll() {
	p.entries = nil
	p.buckets.addAll()
}

func (p *pending) addBundle(td spiffeid.TrustDomain) {
	if p.bundles == nil {
		p.bundles = make(map[spiffeid.TrustDomain]struct{})
	}
	p.bundles[td] = struct{}{}
}

// merge adds what another pending holds.
func (p *pending) merge(o pending) {
	p.addBuckets(o.buckets)
	for id := range o.entries {
		p.addEntry(id)
	}
	for td := range o.bundles {
		p.addBundle(td)
	}
	p.shrunk = p.shrunk || o.shrunk
	p.leave = p.leave || o.leave
}
