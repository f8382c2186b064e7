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
	head, err := c.tx.store.moveFence(ctx, c.tx.fence)
	rev, err := c.look(ctx, head, why, err)
	if rev == 0 && err == nil {
		return 0, &attempted{}, nil
	}
	return rev, nil, err
}

// full finds out what became of a transaction that was answered by NOSPACE. One
// that meets the end of the quota only when it is applied, because others came
// in between, is applied all the same. It is under way no more, and the fence
// could not be moved.
func (c *commit) full(ctx context.Context, why error) (store.Revision, error) {
	head, err := c.tx.store.headNow(ctx)
	rev, err := c.look(ctx, head, why, err)
	if rev != 0 || err != nil {
		return rev, err
	}
	err = fmt.Errorf("%w; nothing was written", explain("committing", why))
	c.tx.store.refused(err, diagnose(why))
	return 0, err
}

// look goes through the heads from the given one, which could not be read if
// there is an error, back to where the transaction began. Without an error it
// returns the revision of the transaction, 0 if it was not committed.
func (c *commit) look(ctx context.Context, head *mvccpb.KeyValue, why, err error) (store.Revision, error) {
	s, begin := c.tx.store, time.Now()
	for err == nil && head.ModRevision > c.tx.at {
		if string(head.Value) == c.id {
			s.metrics.resolved("committed")
			s.committed(time.Since(begin))
			return store.Revision(head.ModRevision), nil
		}
		head, err = s.headAt(ctx, head.ModRevision-1)
	}
	if err != nil {
		s.metrics.resolved("unknown")
		err = fmt.Errorf("%w; the outcome is unknown: %w", explain("committing", why), err)
		s.refused(err, diagnose(why))
		return 0, err
	}
	s.metrics.resolved("not committed")
	return 0, nil
}

// headNow is the head that a majority agrees on.
func (s *Store) headNow(ctx context.Context) (head *mvccpb.KeyValue, err error) {
	err = s.attempt(ctx, "finding out what was committed", func(ctx context.Context) error {
		resp, err := s.client.Get(ctx, s.at.head())
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return s.gone()
		}
		head = resp.Kvs[0]
		return nil
	})
	return head, err
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
