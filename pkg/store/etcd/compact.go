package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// compactLock is held by the process that compacts.
	compactLock = "compact history"
	// compactSteps is how often in a history it does.
	compactSteps = 4
)

// compactForEver compacts etcd's history while this process holds the lock for
// it, and waits for the lock otherwise.
func (s *Store) compactForEver(ctx context.Context, history time.Duration) {
	for ctx.Err() == nil {
		err := s.compactWhileHeld(ctx, history)
		if ctx.Err() != nil || s.isClosed() {
			return
		}
		if err != nil {
			s.cfg.Logger.WarnContext(ctx, "history of etcd is not compacted, it grows", telemetry.Err, err)
		}
		sleep(ctx, history/compactSteps/4)
	}
}

// compactWhileHeld notes etcd's revision from time to time, and compacts up to
// the one that it noted a history ago.
func (s *Store) compactWhileHeld(ctx context.Context, history time.Duration) error {
	l, err := s.Lock(ctx, compactLock)
	if err != nil {
		return err
	}
	defer l.Unlock()
	ticker := time.NewTicker(history / compactSteps)
	defer ticker.Stop()
	var noted []int64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.Lost():
			return nil
		case <-ticker.C:
		}
		m, err := s.begin(ctx, "")
		if err != nil {
			return err
		}
		if noted = append(noted, m.at); len(noted) <= compactSteps {
			continue
		}
		if err := s.compact(ctx, noted[0]); err != nil {
			return err
		}
		noted = noted[1:]
	}
}

// compact forgets what etcd had before a revision. That somebody else has done
// so is no error.
func (s *Store) compact(ctx context.Context, rev int64) error {
	return s.attempt(ctx, "compacting", func(ctx context.Context) error {
		_, err := s.client.Compact(ctx, rev)
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil
		}
		return err
	})
}
