package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Check implements store.Store: a majority of etcd answers, and, if it did not
// take the last commit, it takes one now. What is written for that is a key of
// its own.
func (s *Store) Check(ctx context.Context) error {
	done, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	if _, err := s.begin(ctx, ""); err != nil {
		return err
	}
	if s.refusing.Load() == nil {
		return nil
	}
	limited, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), s.cfg.RequestTimeout)
	defer cancel()
	start := time.Now()
	if _, err := s.client.Put(limited, s.at.probe(), ""); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.metrics.failed(diagnose(err))
		return fmt.Errorf("%w; it took no commit since", explain("trying to write", err))
	}
	s.committed(time.Since(start))
	return nil
}
