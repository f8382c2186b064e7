package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/retry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// presenceNotice is how long a server waits in silence for the lock of its
	// ID.
	presenceNotice = time.Second
	// presenceWait is how long it waits in all: longer than the lock of a
	// process that was killed outlives it, in every engine.
	presenceWait = 45 * time.Second
)

// errTwin says that two servers have one ID.
var errTwin = errors.New("another server with this server's ID is running")

// presence is the lock that a server holds in the store for as long as it runs,
// named by its ID. A data_dir that was copied to a second machine, with the ID
// and the keys in it, is found out by that: two servers that both take one
// journal for theirs would undo each other's rotations.
type presence struct {
	store store.Store
	// name is the lock's.
	name string
	// dir is data_dir.
	dir  string
	log  *slog.Logger
	lock store.Lock
	// patience is presenceWait (tests).
	patience time.Duration
}

func newPresence(s store.Store, serverID, dir string, log *slog.Logger) *presence {
	return &presence{store: s, name: registry.ServerLock(serverID), dir: dir, log: log, patience: presenceWait}
}

// take waits for the lock, but not for ever. A server that was killed a moment
// ago leaves it behind for as long as the engine's lease lasts.
func (p *presence) take(ctx context.Context) error {
	err := p.try(ctx, presenceNotice)
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	p.log.WarnContext(ctx, "waiting for the lock of this server's ID: was this server killed a moment ago, or does another run with a copy of its data_dir?",
		telemetry.Name, p.name, telemetry.Limit, p.patience)
	err = p.try(ctx, p.patience)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return p.twin()
	}
	return err
}

func (p *presence) try(ctx context.Context, patience time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lock, err := p.store.Lock(waiting, p.name)
	if err != nil {
		return fmt.Errorf("taking the lock of this server's ID: %w", err)
	}
	p.lock = lock
	return nil
}

func (p *presence) twin() error {
	return keyError("server.data_dir", "%w: was %s copied? The copy needs an identity of its own: stop it, remove %s and the key manager's keys from it, and start it again",
		errTwin, p.dir, filepath.Join(p.dir, serverIDFile))
}

// Run holds the lock until ctx ends, and takes it again when it was lost, as by a
// server that was cut off from the store for longer than the lease. It returns
// an error when another server has it meanwhile: proof says whether the store
// can be reached.
func (p *presence) Run(ctx context.Context, proof func(context.Context) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.lock.Lost():
		}
		p.log.WarnContext(ctx, "the lock of this server's ID was lost, taking it again", telemetry.Name, p.name)
		p.lock.Unlock() // Until then others of this process wait for it, and this one would too.
		if err := p.retake(ctx, proof); err != nil {
			return err
		}
		p.log.InfoContext(ctx, "the lock of this server's ID is held again", telemetry.Name, p.name)
	}
}

func (p *presence) retake(ctx context.Context, proof func(context.Context) error) error {
	pauses := retry.Pauses()
	for {
		err := p.try(ctx, p.patience)
		switch {
		case err == nil || ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded) && proof(ctx) == nil:
			return p.twin()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pauses.NextBackOff()):
		}
	}
}

// release gives the lock up, so that the next start of this server waits for
// nothing.
func (p *presence) release() {
	if p != nil && p.lock != nil {
		p.lock.Unlock()
	}
}
