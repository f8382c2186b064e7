package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/pkg/store"
)

// ErrNoStore is returned by [Config.OpenStore] when the store is not there and
// was not to be made.
var ErrNoStore = errors.New("there is no store")

// OpenStore opens the store that the configuration names and nothing else of a
// server, for work on the store as a whole. With create, a store that is not
// there is made, empty. The errors are those of Validate, ErrNoStore, and the
// engine's, of which store.ErrLocked says that a server works on it. What the
// store holds is not looked at. The caller closes it.
func (c *Config) OpenStore(ctx context.Context, create bool, log *slog.Logger) (store.Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := c.Server.withDefaults()
	chosen, err := c.choose()
	if err != nil {
		return nil, err
	}
	if create {
		if err := prepareDataDir(s.DataDir); err != nil {
			return nil, err
		}
	} else if path := chosen.storeFile; path != "" {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", ErrNoStore, err)
		}
	}
	return chosen.store(ctx, storeEnv{log: log, reg: prometheus.NewRegistry(), existing: !create})
}
