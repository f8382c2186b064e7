package bolt

import (
	"encoding/binary"
	"fmt"
	"iter"

	"go.etcd.io/bbolt"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/engine"
)

// rwtx is a store.RWTx: the snapshot that the Updates before this one left,
// under a buffer of this one's own writes. Nothing reaches bbolt before the
// function has returned without an error, so a failed Update leaves no trace
// among its neighbours. The buffer has room for the revision before each value.
type rwtx struct {
	*snapshot
	engine.Buffer
}

// Get implements store.Tx.
func (t *rwtx) Get(key string) (store.KV, error) {
	kv, below, err := t.Buffer.Get(key)
	if !below {
		return kv, err
	}
	return t.snapshot.Get(key)
}

// Scan implements store.Tx.
func (t *rwtx) Scan(prefix, after string) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		if err := t.Buffer.Scan(); err != nil {
			yield(store.KV{}, err)
			return
		}
		below := t.cursor(prefix, after)
		for at := string(scanStart(prefix, after)); ; {
			kv, deleted, ok := t.Least(below, prefix, at)
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

// apply moves the writes into the bucket under revision rev and returns what
// they changed.
func (t *rwtx) apply(kv *bbolt.Bucket, rev store.Revision) ([]store.Event, error) {
	writes := t.Writes()
	events := make([]store.Event, 0, len(writes))
	for _, w := range writes {
		key := []byte(w.Key)
		switch {
		case !w.IsDelete():
			binary.BigEndian.PutUint64(w.Raw, uint64(rev))
			if err := kv.Put(key, w.Raw); err != nil {
				return nil, fmt.Errorf("putting key %q: %w", w.Key, err)
			}
			events = append(events, store.Event{Key: w.Key, Value: w.Raw[stampSize:]})
		case kv.Get(key) != nil:
			if err := kv.Delete(key); err != nil {
				return nil, fmt.Errorf("deleting key %q: %w", w.Key, err)
			}
			events = append(events, store.Event{Key: w.Key})
		}
	}
	return events, nil
}
