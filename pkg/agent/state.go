package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/credence-id/credence/pkg/telemetry"
	agentstatev1 "github.com/credence-id/credence/proto/agentstate/v1"
	"google.golang.org/protobuf/proto"
)

// state is the file in which the cache survives a restart.
type state struct {
	path     string
	withKeys bool
	log      *slog.Logger
}

const (
	statePerm = 0o600
	// stateEvery is the least time between two writes: a burst of changes is
	// written once. What a crash loses is fetched from the server again.
	stateEvery = time.Second
)

// restore puts what is kept into an empty cache. A file that makes no sense is
// passed over, as the server has all of it; one that others can read is
// refused, as there may be keys in it.
func (s *state) restore(c *cache.Cache) error {
	if err := checkPrivate(s.path); err != nil {
		return err
	}
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the agent's state: %w", err)
	}
	kept := new(agentstatev1.State)
	if err := proto.Unmarshal(data, kept); err != nil {
		s.log.Warn("the state of an earlier run cannot be read: beginning anew", telemetry.Path, s.path, telemetry.Err, err)
		return nil
	}
	if !s.withKeys {
		kept.X509Svids = nil // persist_svids was switched off since
	}
	return c.Restore(kept)
}

// checkPrivate refuses a file of the agent's state that others may read.
func checkPrivate(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the agent's state: %w", err)
	}
	if wide := info.Mode().Perm() &^ statePerm; wide != 0 {
		return fmt.Errorf("reading the agent's state: %s has mode %o, which lets others read it; run chmod %o on it, or remove it", path, info.Mode().Perm(), statePerm)
	}
	return nil
}

// keep writes the cache's state when it has changed, until ctx ends, and a last
// time then.
func (s *state) keep(ctx context.Context, c *cache.Cache) error {
	for {
		select {
		case <-c.Changes(s.withKeys):
		case <-ctx.Done():
			select {
			case <-c.Changes(s.withKeys):
				return s.write(c)
			default:
				return nil
			}
		}
		if err := s.write(c); err != nil {
			// Serving goes on; a full disk must not take identities away.
			s.log.ErrorContext(ctx, "keeping the agent's state", telemetry.Err, err)
		}
		select {
		case <-time.After(stateEvery):
		case <-ctx.Done():
		}
	}
}

func (s *state) write(c *cache.Cache) error {
	data, err := proto.Marshal(c.Snapshot(s.withKeys))
	if err != nil {
		return fmt.Errorf("encoding the agent's state: %w", err)
	}
	return atomicfile.Write(s.path, data, statePerm)
}

// remove forgets it, for an agent that was banned or evicted.
func (s *state) remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the agent's state: %w", err)
	}
	return nil
}
