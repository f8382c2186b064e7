package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/credence-id/credence/pkg/store"
)

// resolve finds out whether a transaction was committed whose answer was lost
// to why. It may even be under way: a member that hangs can hold it, and pass
// it on minutes later. So first the fence is moved, which every transaction
// compares; after that it has been committed or never will be. Then the heads
// since its beginning are looked through for its ID.
//
// A transaction that never will be is tried again by the caller. If etcd cannot
// be asked for RequestTimeout, the outcome stays unknown.
func (c *commit) resolve(ctx context.Context, why error) (store.Revision, *attempted, error) {
	s := c.tx.store
	begin := time.Now()
	head, err := s.moveFence(ctx, c.tx.fence)
	for err == nil && head.ModRevision > c.tx.at {
		if string(head.Value) == c.id {
			s.metrics.resolved("committed")
			s.committed(time.Since(begin))
			return store.Revision(head.ModRevision), nil, nil
		}
		head, err = s.headAt(ctx, head.ModRevision-1)
	}
	if err != nil {
		s.metrics.resolved("unknown")
		err = fmt.Errorf("%w; the outcome is unknown: %w", explain("committing", why), err)
		s.refused(err, diagnose(why))
		return 0, nil, err
	}
	s.metrics.resolved("not committed")
	return 0, &attempted{}, nil
}

// moveFence writes the record of the store as it is, unless somebody has done
// so since, and returns the head of that moment.
func (s *Store) moveFence(ctx context.Context, fence int64) (head *mvccpb.KeyValue, err error) {
	err = s.attempt(ctx, "finding out what was committed", func(ctx context.Context) error {
		resp, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(s.at.store()), "=", fence)).
			Then(clientv3.OpPut(s.at.store(), s.record), clientv3.OpGet(s.at.head())).
			Else(clientv3.OpGet(s.at.store()), clientv3.OpGet(s.at.head())).
			Commit()
		if err != nil {
			return err
		}
		if record := first(resp.Responses[0]); !resp.Succeeded && (record == nil || string(record.Value) != s.record) {
			return s.gone()
		}
		if head = first(resp.Responses[1]); head == nil {
			return s.gone()
		}
		return nil
	})
	return head, err
}

// headAt is the head as it was at a revision.
func (s *Store) headAt(ctx context.Context, rev int64) (head *mvccpb.KeyValue, err error) {
	t := &snapshot{store: s, ctx: ctx, moment: moment{at: rev}}
	resp, err := t.read("finding out what was committed", s.at.head())
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return nil, err
	case err != nil:
		return nil, err
	case len(resp.Kvs) == 0:
		return nil, s.gone()
	}
	return resp.Kvs[0], nil
}
