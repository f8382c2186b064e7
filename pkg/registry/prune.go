package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

// pruneLock is the name of the store's lock that pruning is done under.
const pruneLock = "prune"

// pruneBatch is how much one Update removes: a token and its alias cost the
// most.
const pruneBatch = (batchOps - 2) / (5 + deleteEntryOps)

// NextExpiry is when the next entry or join token expires; zero when none will.
// It may lie in the past while nobody has pruned.
func (r *Registry) NextExpiry(ctx context.Context) (at time.Time, err error) {
	at, _, err = r.nextExpiry(ctx)
	return at, err
}

// nextExpiry also returns the revision at which this was so.
func (r *Registry) nextExpiry(ctx context.Context) (at time.Time, rev store.Revision, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		rev = tx.Revision()
		for kv, err := range tx.Scan(tableExpiry, "") {
			if err != nil {
				return err
			}
			x, err := parseExpiry(kv)
			at = x.at
			return err
		}
		return nil
	})
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("reading the next expiry: %w", err)
	}
	return at, rev, nil
}

// Prune removes entries and join tokens that have expired at now, and the alias
// of a token that nobody used. It returns how many it removed. It holds the
// store's lock "prune"; what it did before an error stays done, and the next
// call goes on from there.
func (r *Registry) Prune(ctx context.Context, now time.Time) (int, error) {
	lock, err := r.store.Lock(ctx, pruneLock)
	if err != nil {
		return 0, fmt.Errorf("pruning: %w", err)
	}
	defer lock.Unlock()
	for total := 0; ; {
		n := 0
		_, err := lock.Update(ctx, func(tx store.RWTx) (err error) {
			n, err = pruneOnce(tx, now)
			return err
		})
		if err != nil {
			return total, fmt.Errorf("pruning: %w", err)
		}
		if total += n; n < pruneBatch {
			return total, nil
		}
	}
}

func pruneOnce(tx store.RWTx, now time.Time) (int, error) {
	var due []expiry
	for kv, err := range tx.Scan(tableExpiry, "") {
		if err != nil {
			return 0, err
		}
		x, err := parseExpiry(kv)
		if err != nil {
			return 0, err
		}
		if x.at.After(now) || len(due) == pruneBatch {
			break
		}
		due = append(due, x)
	}
	for _, x := range due {
		if err := x.remove(tx); err != nil {
			return 0, err
		}
	}
	return len(due), nil
}

func (x expiry) remove(tx store.RWTx) error {
	tx.Delete(expiryKey(x.at, x.kind, x.key))
	switch x.kind {
	case expiresEntry:
		return removeExpired(tx, x.key)
	case expiresToken:
		return removeToken(tx, x.key)
	}
	return fmt.Errorf("expiry of unknown kind %q", x.kind)
}

func removeExpired(tx store.RWTx, id string) error {
	e, err := loadEntry(tx, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return deleteEntry(tx, e)
}

// removeToken removes a token by its hash, and its alias, unless that belongs to
// the agent that used the token or was given another parent since.
func removeToken(tx store.RWTx, hash string) error {
	kv, found, err := get(tx, tableToken+hash)
	if err != nil || !found {
		return err
	}
	t, err := decodeToken(kv)
	if err != nil {
		return err
	}
	tx.Delete(tableToken + hash)
	if t.AliasEntryID == "" || t.KeyHash != nil {
		return nil
	}
	e, err := loadEntry(tx, t.AliasEntryID)
	if errors.Is(err, ErrNotFound) || err == nil && !strings.HasPrefix(e.ParentID.Path(), agentPrefix) {
		return nil
	}
	if err != nil {
		return err
	}
	return deleteEntry(tx, e)
}

// Run prunes at the moment something expires, until ctx ends; it returns
// ctx.Err() then, or the store's error. It does not poll: a new expiry reaches
// it through the store's log.
func (r *Registry) Run(ctx context.Context) error {
	_, rev, err := r.nextExpiry(ctx)
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1) // A full one says the same as two.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.watchExpiries(ctx, rev, changed) })
	g.Go(func() error { return r.pruneOnTime(ctx, changed) })
	return g.Wait()
}

func (r *Registry) watchExpiries(ctx context.Context, after store.Revision, changed chan<- struct{}) error {
	for {
		err := r.watchTable(ctx, after, changed)
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
		// What was missed is in the table: read it anew, watch from there.
		if _, after, err = r.nextExpiry(ctx); err != nil {
			return err
		}
		signal(changed)
	}
}

func (r *Registry) watchTable(ctx context.Context, after store.Revision, changed chan<- struct{}) error {
	for _, err := range r.store.Watch(ctx, tableExpiry, after) {
		if err != nil {
			return fmt.Errorf("watching expiries: %w", err)
		}
		signal(changed)
	}
	return ctx.Err()
}

func signal(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}

func (r *Registry) pruneOnTime(ctx context.Context, changed <-chan struct{}) error {
	for {
		next, err := r.NextExpiry(ctx)
		if err != nil {
			return err
		}
		if err := waitUntil(ctx, next, changed); err != nil {
			return err
		}
		n, err := r.Prune(ctx, time.Now())
		if err != nil {
			return err
		}
		if n > 0 {
			r.log.LogAttrs(ctx, slog.LevelInfo, "removed what has expired", slog.Int(telemetry.Count, n))
		}
	}
}

// waitUntil returns at the given time (never, if zero), or when changed.
func waitUntil(ctx context.Context, at time.Time, changed <-chan struct{}) error {
	var due <-chan time.Time
	if !at.IsZero() {
		timer := time.NewTimer(time.Until(at))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-due:
	}
	return nil
}
