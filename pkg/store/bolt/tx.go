package bolt

import (
	"bytes"
	"encoding/binary"
	"iter"

	"go.etcd.io/bbolt"

	"github.com/credence-id/credence/pkg/store"
)

var (
	bucketKV   = []byte("kv")
	bucketMeta = []byte("meta")
	keyFormat  = []byte("format")
	keyID      = []byte("store_id")
)

// stampSize is the length of the revision before each value.
const stampSize = 8

// snapshot is a store.Tx over one bbolt transaction.
type snapshot struct {
	kv  *bbolt.Bucket
	rev store.Revision
}

func newSnapshot(tx *bbolt.Tx) *snapshot {
	kv := tx.Bucket(bucketKV)
	return &snapshot{kv: kv, rev: store.Revision(kv.Sequence())}
}

// Revision implements store.Tx.
func (s *snapshot) Revision() store.Revision { return s.rev }

// Get implements store.Tx.
func (s *snapshot) Get(key string) (store.KV, error) {
	stamped := s.kv.Get([]byte(key))
	if stamped == nil {
		return store.KV{}, store.ErrNotFound
	}
	return parseKV(key, stamped), nil
}

// Scan implements store.Tx.
func (s *snapshot) Scan(prefix, after string) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		c := s.cursor(prefix, after)
		for kv, ok := c.Take(); ok; kv, ok = c.Take() {
			if !yield(kv, nil) {
				return
			}
		}
	}
}

// cursor walks the keys of a snapshot that have a prefix. It is an engine.Cursor.
type cursor struct {
	bolt   *bbolt.Cursor
	prefix []byte
	key    []byte // nil at the end
	value  []byte
}

func (s *snapshot) cursor(prefix, after string) *cursor {
	c := &cursor{bolt: s.kv.Cursor(), prefix: []byte(prefix)}
	c.set(c.bolt.Seek(scanStart(prefix, after)))
	return c
}

func (c *cursor) set(key, value []byte) {
	if !bytes.HasPrefix(key, c.prefix) {
		key = nil
	}
	c.key, c.value = key, value
}

// Key implements engine.Cursor.
func (c *cursor) Key() []byte { return c.key }

// Take implements engine.Cursor.
func (c *cursor) Take() (store.KV, bool) {
	if c.key == nil {
		return store.KV{}, false
	}
	kv := parseKV(string(c.key), c.value)
	c.set(c.bolt.Next())
	return kv, true
}

// scanStart is the least key that has the prefix and is greater than after.
func scanStart(prefix, after string) []byte {
	if after == "" || after < prefix {
		return []byte(prefix)
	}
	return append([]byte(after), 0)
}

// parseKV takes a stored value apart.
func parseKV(key string, stamped []byte) store.KV {
	return store.KV{
		Key:         key,
		Value:       stamped[stampSize:],
		ModRevision: store.Revision(binary.BigEndian.Uint64(stamped)),
	}
}
