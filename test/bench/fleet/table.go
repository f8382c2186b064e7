package fleet

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
)

// table has every version of every entry that any agent was sent, once. Agents
// hold numbers of versions. Nothing is ever taken out of it.
type table struct {
	seed maphash.Seed

	mu sync.RWMutex
	// guarded by mu for writing; what is in the lists is not changed after its
	// number was given out:
	byRaw    map[uint64]uint32 // hash of the wire form → version
	byID     map[string]uint32 // entry ID → entry
	probes   map[string]*Probe // by entry ID: for versions not seen yet
	entries  list[entry]
	versions list[version]
}

// entry is one entry, in whatever version.
type entry struct {
	id     string
	bucket uint8
	// probe is of the change under way, which may be the removal.
	probe atomic.Pointer[Probe]
}

// version is an entry as of one revision. Number 0 is none.
type version struct {
	entry    uint32
	revision uint64
	sum      uint64
	probe    *Probe
}

func newTable() *table {
	t := &table{seed: maphash.MakeSeed(), byRaw: map[uint64]uint32{}, byID: map[string]uint32{}, probes: map[string]*Probe{}}
	t.versions.add() // number 0
	return t
}

// version is the number of an EntryVersion in wire form. Only the first agent
// that is sent it pays for decoding.
func (t *table) version(raw []byte) (uint32, error) {
	hash := maphash.Bytes(t.seed, raw)
	t.mu.RLock()
	n, ok := t.byRaw[hash]
	t.mu.RUnlock()
	if ok {
		return n, nil
	}
	m := &feedv1.EntryVersion{Entry: &types.Entry{}}
	if err := proto.Unmarshal(raw, m); err != nil {
		return 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.byRaw[hash]; ok {
		return n, nil
	}
	id := m.GetEntry().GetId()
	e, ok := t.byID[id]
	if !ok {
		e = t.entries.add()
		t.entries.at(e).id, t.entries.at(e).bucket = id, feedv1.Bucket(id)
		t.byID[id] = e
	}
	n = t.versions.add()
	*t.versions.at(n) = version{entry: e, revision: m.GetRevision(), sum: feedv1.Sum(id, m.GetRevision()), probe: t.probes[id]}
	t.byRaw[hash] = n
	return n, nil
}

// find is the number of an entry by its ID.
func (t *table) find(id string) (uint32, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, ok := t.byID[id]
	return n, ok
}

// expect has the next change of the entry reported to p; nil: none any more.
func (t *table) expect(id string, p *Probe) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byID[id]; ok {
		t.entries.at(e).probe.Store(p)
	}
	if p == nil {
		delete(t.probes, id)
		return
	}
	t.probes[id] = p
}

// list grows without moving what is in it, so that it can be read while another
// goroutine adds.
type list[T any] struct {
	chunks [maxChunks]atomic.Pointer[[chunk]T]
	n      uint32
}

const (
	chunk     = 1 << 12
	maxChunks = 1 << 14
)

// add makes room for one more and returns its number.
func (l *list[T]) add() uint32 {
	n := l.n
	if n%chunk == 0 {
		l.chunks[n/chunk].Store(new([chunk]T))
	}
	l.n++
	return n
}

func (l *list[T]) at(n uint32) *T { return &l.chunks[n/chunk].Load()[n%chunk] }
