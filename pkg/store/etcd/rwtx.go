package etcd

import (
	"iter"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/engine"
)

// rwtx is a store.RWTx: a snapshot under a buffer of this Update's own writes.
// It remembers what was read of the snapshot, which the commit compares.
type rwtx struct {
	snapshot
	engine.Buffer

	scans []*scanned
	// known are keys of the snapshot that need not be fetched again, nil for
	// one that is not there.
	known  map[string]*mvccpb.KeyValue
	broken error // Why etcd could not be read; sticky.
}

// scanned is the part of a table that a Scan has looked at.
type scanned struct {
	prefix   string
	from, to string // in etcd; to is exclusive
}

// Get implements store.Tx.
func (t *rwtx) Get(key string) (store.KV, error) {
	buffered, below, err := t.Buffer.Get(key)
	if !below {
		return buffered, err
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

// Scan implements store.Tx. What is guarded by the commit ends where the consumer
// does.
func (t *rwtx) Scan(prefix, after string) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		if err := t.Buffer.Scan(); err != nil {
			yield(store.KV{}, err)
			return
		}
		below := t.cursor(prefix, after)
		below.err = t.broken
		seen := &scanned{prefix: prefix, from: below.next, to: below.next}
		t.scans = append(t.scans, seen)
		var walk engine.Cursor = learning{below, t}
		for at := scanStart(prefix, after); ; {
			kv, deleted, ok := t.Least(walk, prefix, at)
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

// learning is a cursor whose transaction remembers what it gave.
type learning struct {
	*cursor
	tx *rwtx
}

// Take implements engine.Cursor.
func (l learning) Take() (store.KV, bool) {
	next := l.peek()
	kv, ok := l.cursor.Take()
	if ok {
		l.tx.learn(kv.Key, next)
	}
	return kv, ok
}
