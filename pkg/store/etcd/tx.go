package etcd

import (
	"context"
	"errors"
	"iter"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/credence-id/credence/pkg/store"
)

// Bounds of one page of a scan. The first is small, because many scans look at
// a few keys; the next are as many keys as make pageBytes, if they are like
// those before.
const (
	firstPage = 64
	maxPage   = 10_000
	pageBytes = 1 << 20
)

// snapshot is a store.Tx at one moment of etcd's history. Any member that has
// reached it answers alike, so it is read from whichever comes.
type snapshot struct {
	store *Store
	ctx   context.Context // of the transaction
	moment
}

// Revision implements store.Tx.
func (t *snapshot) Revision() store.Revision { return t.rev }

// Get implements store.Tx.
func (t *snapshot) Get(key string) (store.KV, error) {
	if key == "" || len(key) > store.MaxKey {
		return store.KV{}, store.ErrNotFound
	}
	kv, err := t.get(key)
	if err != nil {
		return store.KV{}, err
	}
	if kv == nil {
		return store.KV{}, store.ErrNotFound
	}
	return parseKV(key, kv), nil
}

// get returns nil for a key that is not there.
func (t *snapshot) get(key string) (*mvccpb.KeyValue, error) {
	resp, err := t.read("reading a key", t.store.at.data(key))
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return resp.Kvs[0], nil
}

// read is a range at the snapshot's moment. A member that has not reached it
// is asked to catch up first.
func (t *snapshot) read(what, from string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	opts = append(opts, clientv3.WithRev(t.at))
	err = t.store.attempt(t.ctx, what, func(ctx context.Context) error {
		resp, err = t.store.client.Get(ctx, from, append(opts, clientv3.WithSerializable())...)
		if errors.Is(err, rpctypes.ErrFutureRev) {
			resp, err = t.store.client.Get(ctx, from, opts...)
		}
		return err
	})
	return resp, err
}

// Scan implements store.Tx.
func (t *snapshot) Scan(prefix, after string) iter.Seq2[store.KV, error] {
	return func(yield func(store.KV, error) bool) {
		c := t.cursor(prefix, after)
		for kv, ok := c.Take(); ok; kv, ok = c.Take() {
			if !yield(kv, nil) {
				return
			}
		}
		if c.err != nil {
			yield(store.KV{}, c.err)
		}
	}
}

// cursor walks the keys of a snapshot that have a prefix. It is an engine.Cursor.
type cursor struct {
	tx    *snapshot
	next  string // in etcd: where the next page begins; empty after the last
	end   string // in etcd
	limit int64
	page  []*mvccpb.KeyValue
	err   error
}

func (t *snapshot) cursor(prefix, after string) *cursor {
	c := &cursor{tx: t, next: t.store.at.data(scanStart(prefix, after)), end: t.store.at.rangeEnd(prefix), limit: firstPage}
	if c.next >= c.end {
		c.next, c.end = "", "" // After is beyond the prefix.
	}
	return c
}

// peek returns the current key and value, or nil at the end or after an error.
func (c *cursor) peek() *mvccpb.KeyValue {
	if len(c.page) == 0 && c.next != "" && c.err == nil {
		c.fetch()
	}
	if len(c.page) == 0 {
		return nil
	}
	return c.page[0]
}

// Key implements engine.Cursor.
func (c *cursor) Key() []byte {
	if kv := c.peek(); kv != nil {
		return c.tx.store.at.cut(kv.Key)
	}
	return nil
}

// Take implements engine.Cursor.
func (c *cursor) Take() (store.KV, bool) {
	kv := c.peek()
	if kv == nil {
		return store.KV{}, false
	}
	c.page[0], c.page = nil, c.page[1:]
	return parseKV(c.tx.store.at.key(kv.Key), kv), true
}

func (c *cursor) fetch() {
	resp, err := c.tx.read("scanning", c.next, clientv3.WithRange(c.end), clientv3.WithLimit(c.limit))
	if err != nil {
		c.err = err
		return
	}
	c.page, c.next = resp.Kvs, ""
	if !resp.More || len(resp.Kvs) == 0 {
		return
	}
	c.next = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	size := 0
	for _, kv := range resp.Kvs {
		size += len(kv.Key) + len(kv.Value)
	}
	c.limit = min(max(pageBytes*int64(len(resp.Kvs))/int64(size), 1), maxPage)
}

// scanStart is the least key that has the prefix and is greater than after.
func scanStart(prefix, after string) string {
	if after == "" || after < prefix {
		return prefix
	}
	return after + "\x00"
}

// parseKV gives a key of etcd the contract's form.
func parseKV(key string, kv *mvccpb.KeyValue) store.KV {
	value := kv.Value
	if value == nil {
		value = []byte{}
	}
	return store.KV{Key: key, Value: value, ModRevision: store.Revision(kv.ModRevision)}
}

// first is the only key that an answer within a transaction has, or nil.
func first(r *pb.ResponseOp) *mvccpb.KeyValue {
	if kvs := r.GetResponseRange().GetKvs(); len(kvs) > 0 {
		return kvs[0]
	}
	return nil
}
