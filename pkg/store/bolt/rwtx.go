package bolt

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/credence-id/credence/pkg/store"
)

// rwtx is a store.RWTx: the snapshot that the Updates before this one left,
// under a buffer of this one's own writes. Nothing reaches bbolt before the
// function has returned without an error, so a failed Update leaves no trace
// among its neighbours.
type rwtx struct {
	*snapshot
	writes []write // In key order; never more than store.MaxOps.
	gets   map[string]struct{}
	ops    int
	bytes  int
	err    error // The limit that was exceeded first; sticky.
}

// write is a buffered Put, or a Delete when stamped is nil. stamped has room
// for the revision before the value.
type write struct {
	key     string
	stamped []byte
}

// What each operation counts, see store.MaxOps.
const (
	getOps    = 1
	putOps    = 1
	deleteOps = 2
	scanOps   = 2
)

func (w *write) ops() int {
	if w.stamped == nil {
		return deleteOps
	}
	return putOps
}

func (w *write) bytes() int { return len(w.key) + max(len(w.stamped)-stampSize, 0) }

// find returns where key is, or belongs, among the writes.
func (t *rwtx) find(key string) (int, bool) {
	return slices.BinarySearchFunc(t.writes, key, func(w write, key string) int {
		return strings.Compare(w.key, key)
	})
}

// Get implements store.Tx.
func (t *rwtx) Get(key string) (store.KV, error) {
	if i, ok := t.find(key); ok {
		if t.writes[i].stamped == nil {
			return store.KV{}, store.ErrNotFound
		}
		return t.writes[i].kv(), nil
	}
	if _, ok := t.gets[key]; !ok {
		if !t.checkKey(key) || !t.spend(getOps, 0) {
			return store.KV{}, t.err
		}
		if t.gets == nil {
			t.gets = make(map[string]struct{})
		}
		t.gets[key] = struct{}{}
	}
	return t.snapshot.Get(key)
}

// kv is what a reader of the same transaction sees of a Put.
func (w *write) kv() store.KV { return store.KV{Key: w.key, Value: w.stamped[stampSize:]} }

// Scan implements store.Tx. Each step looks at the writes anew, so that what
// the loop's body puts beyond the current key is seen as well.
func (t *rwtx) Scan(prefix, after string) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		if !t.spend(scanOps, 0) {
			yield(store.KV{}, t.err)
			return
		}
		below := t.snapshot.cursor(prefix, after)
		for at := string(scanStart(prefix, after)); ; {
			kv, deleted, ok := t.least(below, prefix, at)
			if !ok {
				return
			}
			if !deleted && !yield(kv, nil) {
				return
			}
			at = kv.Key + "\x00"
		}
	}
}

// least merges one step: the least key with the prefix, not less than at, of
// the writes and of the snapshot below, where a write hides the key it
// replaces.
func (t *rwtx) least(below *cursor, prefix, at string) (kv store.KV, deleted, ok bool) {
	i, _ := t.find(at)
	if i == len(t.writes) || !strings.HasPrefix(t.writes[i].key, prefix) {
		kv, ok = below.take()
		return kv, false, ok
	}
	w := t.writes[i]
	switch {
	case below.key == nil:
	case string(below.key) < w.key:
		kv, ok = below.take()
		return kv, false, ok
	case string(below.key) == w.key:
		below.take()
	}
	if w.stamped == nil {
		return store.KV{Key: w.key}, true, true
	}
	return w.kv(), false, true
}

// Put implements store.RWTx.
func (t *rwtx) Put(key string, value []byte) {
	stamped := make([]byte, stampSize+len(value))
	copy(stamped[stampSize:], value)
	t.write(write{key: key, stamped: stamped})
}

// Delete implements store.RWTx.
func (t *rwtx) Delete(key string) { t.write(write{key: key}) }

func (t *rwtx) write(w write) {
	i, found := t.find(w.key)
	ops, size := w.ops(), w.bytes()
	if found {
		ops -= t.writes[i].ops()
		size -= t.writes[i].bytes()
	}
	if !t.checkKey(w.key) || !t.spend(ops, size) {
		return
	}
	if found {
		t.writes[i] = w
		return
	}
	t.writes = slices.Insert(t.writes, i, w)
}

// checkKey says whether the key may exist.
func (t *rwtx) checkKey(key string) bool {
	if n := len(key); t.err == nil && (n == 0 || n > store.MaxKey) {
		t.err = fmt.Errorf("%w: a key of %d bytes, must be 1 to %d", store.ErrTooLarge, n, store.MaxKey)
	}
	return t.err == nil
}

// spend counts operations and bytes and says whether the limits are kept.
func (t *rwtx) spend(ops, size int) bool {
	t.ops += ops
	t.bytes += size
	switch {
	case t.err != nil:
	case t.ops > store.MaxOps:
		t.err = fmt.Errorf("%w: more than %d operations", store.ErrTooLarge, store.MaxOps)
	case t.bytes > store.MaxBytes:
		t.err = fmt.Errorf("%w: more than %d bytes", store.ErrTooLarge, store.MaxBytes)
	}
	return t.err == nil
}

// apply moves the writes into the bucket under revision rev and returns what
// they changed.
func (t *rwtx) apply(kv *bbolt.Bucket, rev store.Revision) ([]store.Event, error) {
	events := make([]store.Event, 0, len(t.writes))
	for _, w := range t.writes {
		key := []byte(w.key)
		switch {
		case w.stamped != nil:
			binary.BigEndian.PutUint64(w.stamped, uint64(rev))
			if err := kv.Put(key, w.stamped); err != nil {
				return nil, fmt.Errorf("putting key %q: %w", w.key, err)
			}
			events = append(events, store.Event{Key: w.key, Value: w.stamped[stampSize:]})
		case kv.Get(key) != nil:
			if err := kv.Delete(key); err != nil {
				return nil, fmt.Errorf("deleting key %q: %w", w.key, err)
			}
			events = append(events, store.Event{Key: w.key})
		}
	}
	return events, nil
}
