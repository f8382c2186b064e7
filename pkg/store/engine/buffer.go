package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/pkg/store"
)

// What each operation counts, see store.MaxOps: comparisons and writes of etcd's
// transaction.
const (
	getOps    = 1
	putOps    = 1
	deleteOps = 2
	scanOps   = 2
)

// Buffer is what one Update reads and writes, above the snapshot that it sees.
// The first limit of the contract that is exceeded is its error from then on. It
// is used by one goroutine; the zero value is ready.
type Buffer struct {
	// Room is how many bytes are left free before each value, in Write.Raw.
	Room int

	writes []Write // in key order; never more than store.MaxOps
	gets   map[string]struct{}
	ops    int
	bytes  int
	err    error // sticky
}

// Write is a buffered Put, or a Delete.
type Write struct {
	Key string
	// Raw is the room and then the value; nil for a Delete.
	Raw []byte
}

// IsDelete says that the write is a Delete.
func (w *Write) IsDelete() bool { return w.Raw == nil }

func (w *Write) ops() int {
	if w.IsDelete() {
		return deleteOps
	}
	return putOps
}

// Writes are those that remain, in the order of their keys, one for each key.
func (b *Buffer) Writes() []Write { return b.writes }

// Gets are the keys that were read by name below the writes.
func (b *Buffer) Gets() map[string]struct{} { return b.gets }

// Bytes is what was asked for, of keys and values.
func (b *Buffer) Bytes() int { return b.bytes }

// Err is the limit that was exceeded, wrapping store.ErrTooLarge; nil if none was.
func (b *Buffer) Err() error { return b.err }

// Get answers from the writes, with store.ErrNotFound for a key that they delete.
// If below is true, they say nothing of the key, and the snapshot is to be asked.
func (b *Buffer) Get(key string) (kv store.KV, below bool, err error) {
	if i, ok := b.find(key); ok {
		if b.writes[i].IsDelete() {
			return store.KV{}, false, store.ErrNotFound
		}
		return b.kv(i), false, nil
	}
	if _, ok := b.gets[key]; !ok {
		if !b.checkKey(key) || !b.spend(getOps, 0) {
			return store.KV{}, false, b.err
		}
		if b.gets == nil {
			b.gets = make(map[string]struct{})
		}
		b.gets[key] = struct{}{}
	}
	return store.KV{}, true, nil
}

// Scan counts a Scan that begins.
func (b *Buffer) Scan() error {
	b.spend(scanOps, 0)
	return b.err
}

// Cursor is a walk through a snapshot that looks one key ahead.
type Cursor interface {
	// Key is the one ahead; nil at the end.
	Key() []byte
	// Take returns it with its value, and moves on; false at the end.
	Take() (store.KV, bool)
}

// Least is the next step of a Scan: the least key with the prefix, not less than
// at, of the writes and of the snapshot below, where a write hides the key that it
// replaces. The writes are looked at anew each time, so that what the loop's body
// puts beyond the current key is seen as well.
func (b *Buffer) Least(below Cursor, prefix, at string) (kv store.KV, deleted, ok bool) {
	i, _ := b.find(at)
	if i == len(b.writes) || !strings.HasPrefix(b.writes[i].Key, prefix) {
		kv, ok = below.Take()
		return kv, false, ok
	}
	w := &b.writes[i]
	switch key := below.Key(); {
	case key == nil:
	case string(key) < w.Key:
		kv, ok = below.Take()
		return kv, false, ok
	case string(key) == w.Key:
		below.Take()
	}
	if w.IsDelete() {
		return store.KV{Key: w.Key}, true, true
	}
	return b.kv(i), false, true
}

// Put buffers a Put. The value is copied.
func (b *Buffer) Put(key string, value []byte) {
	raw := make([]byte, b.Room+len(value))
	copy(raw[b.Room:], value)
	b.write(Write{key, raw})
}

// Delete buffers a Delete.
func (b *Buffer) Delete(key string) { b.write(Write{Key: key}) }

func (b *Buffer) write(w Write) {
	i, found := b.find(w.Key)
	ops, size := w.ops(), b.size(&w)
	if found {
		ops -= b.writes[i].ops()
		size -= b.size(&b.writes[i])
	}
	if !b.checkKey(w.Key) || !b.spend(ops, size) {
		return
	}
	if found {
		b.writes[i] = w
		return
	}
	b.writes = slices.Insert(b.writes, i, w)
}

// find returns where key is, or belongs, among the writes.
func (b *Buffer) find(key string) (int, bool) {
	return slices.BinarySearchFunc(b.writes, key, func(w Write, key string) int {
		return strings.Compare(w.Key, key)
	})
}

// kv is what a reader of the same transaction sees of a Put.
func (b *Buffer) kv(i int) store.KV {
	return store.KV{Key: b.writes[i].Key, Value: b.writes[i].Raw[b.Room:]}
}

func (b *Buffer) size(w *Write) int { return len(w.Key) + max(len(w.Raw)-b.Room, 0) }

// checkKey says whether the key may exist.
func (b *Buffer) checkKey(key string) bool {
	if n := len(key); b.err == nil && (n == 0 || n > store.MaxKey) {
		b.err = fmt.Errorf("%w: a key of %d bytes, must be 1 to %d", store.ErrTooLarge, n, store.MaxKey)
	}
	return b.err == nil
}

// spend counts operations and bytes and says whether the limits are kept.
func (b *Buffer) spend(ops, size int) bool {
	b.ops += ops
	b.bytes += size
	switch {
	case b.err != nil:
	case b.ops > store.MaxOps:
		b.err = fmt.Errorf("%w: more than %d operations", store.ErrTooLarge, store.MaxOps)
	case b.bytes > store.MaxBytes:
		b.err = fmt.Errorf("%w: more than %d bytes", store.ErrTooLarge, store.MaxBytes)
	}
	return b.err == nil
}
