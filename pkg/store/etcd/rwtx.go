package etcd

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/credence-id/credence/pkg/store"
)

// rwtx is a store.RWTx: a snapshot under a buffer of this Update's own writes.
// It remembers what was read of the snapshot, which the commit compares.
type rwtx struct {
	snapshot
	writes []write // In key order; never more than store.MaxOps.
	// gets are the keys read by name.
	gets  map[string]struct{}
	scans []*scanned
	// known are keys of the snapshot that need not be fetched again, nil for
	// one that is not there.
	known  map[string]*mvccpb.KeyValue
	ops    int
	bytes  int
	err    error // The limit that was exceeded first; sticky.
	broken error // Why etcd could not be read; sticky.
}

// write is a buffered Put, or a Delete.
type write struct {
	key    string
	value  []byte
	delete bool
}

// scanned is the part of a table that a Scan has looked at.
type scanned struct {
	prefix   string
	from, to string // in etcd; to is exclusive
}

// What each operation counts, see store.MaxOps: comparisons and writes of
// etcd's transaction.
const (
	getOps    = 1
	putOps    = 1
	deleteOps = 2
	scanOps   = 2
)

func (w *write) ops() int {
	if w.delete {
		return deleteOps
	}
	return putOps
}

func (w *write) bytes() int { return len(w.key) + len(w.value) }

// find returns where key is, or belongs, among the writes.
func (t *rwtx) find(key string) (int, bool) {
	return slices.BinarySearchFunc(t.writes, key, func(w write, key string) int {
		return strings.Compare(w.key, key)
	})
}

// Get implements store.Tx.
func (t *rwtx) Get(key string) (store.KV, error) {
	if i, ok := t.find(key); ok {
		if t.writes[i].delete {
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
	kv, err := t.fetch(key)
	switch {
	case err != nil:
		return store.KV{}, err
	case kv == nil:
		return store.KV{}, store.ErrNotFound
	}
	return parseKV(key, kv), nil
}

// fetch reads a key of the snapshot once.
func (t *rwtx) fetch(key string) (*mvccpb.KeyValue, error) {
	if kv, ok := t.known[key]; ok {
		return kv, nil
	}
	if t.broken != nil {
		return nil, t.broken
	}
	kv, err := t.get(key)
	if err != nil {
		t.broken = err
		return nil, err
	}
	t.learn(key, kv)
	return kv, nil
}

func (t *rwtx) learn(key string, kv *mvccpb.KeyValue) {
	if t.known == nil {
		t.known = make(map[string]*mvccpb.KeyValue)
	}
	t.known[key] = kv
}

// kv is what a reader of the same transaction sees of a Put.
func (w *write) kv() store.KV { return store.KV{Key: w.key, Value: w.value} }

// Scan implements store.Tx. Each step looks at the writes anew, so that what
// the loop's body puts beyond the current key is seen as well. What is guarded
// by the commit ends where the consumer does.
func (t *rwtx) Scan(prefix, after string) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		if !t.spend(scanOps, 0) {
			yield(store.KV{}, t.err)
			return
		}
		below := t.cursor(prefix, after)
		below.err = t.broken
		seen := &scanned{prefix: prefix, from: below.next, to: below.next}
		t.scans = append(t.scans, seen)
		for at := scanStart(prefix, after); ; {
			kv, deleted, ok := t.least(below, prefix, at)
			if below.err != nil {
				t.broken = below.err
				yield(store.KV{}, below.err)
				return
			}
			if !ok {
				seen.to = below.end
				return
			}
			seen.to = t.store.at.data(kv.Key) + "\x00"
			if !deleted && !yield(kv, nil) {
				return
			}
			at = kv.Key + "\x00"
		}
	}
}

// least is a scan's next step: the least key with the prefix, not less than at,
// of the writes and of the snapshot below, where a write hides the key it
// replaces.
func (t *rwtx) least(below *cursor, prefix, at string) (kv store.KV, deleted, ok bool) {
	i, _ := t.find(at)
	next := below.peek()
	if i == len(t.writes) || !strings.HasPrefix(t.writes[i].key, prefix) {
		kv, ok = t.takeFrom(below, next)
		return kv, false, ok
	}
	w := t.writes[i]
	if next != nil {
		switch strings.Compare(t.store.at.key(next.Key), w.key) {
		case -1:
			kv, ok = t.takeFrom(below, next)
			return kv, false, ok
		case 0:
			t.takeFrom(below, next)
		}
	}
	if w.delete {
		return store.KV{Key: w.key}, true, true
	}
	return w.kv(), false, true
}

// takeFrom takes the cursor's current key, which is next, and remembers it.
func (t *rwtx) takeFrom(below *cursor, next *mvccpb.KeyValue) (store.KV, bool) {
	kv, ok := below.take()
	if ok {
		t.learn(kv.Key, next)
	}
	return kv, ok
}

// Put implements store.RWTx.
func (t *rwtx) Put(key string, value []byte) {
	t.write(write{key: key, value: append([]byte{}, value...)})
}

// Delete implements store.RWTx.
func (t *rwtx) Delete(key string) { t.write(write{key: key, delete: true}) }

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
