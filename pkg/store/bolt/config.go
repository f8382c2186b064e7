package bolt

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/pkg/store"
)

// Defaults of Config.
const (
	defaultMmapSize    = 8 << 30
	defaultRingBatches = 16384
	defaultRingBytes   = 16 << 20
)

// Config says where the store is and how much memory its history may take.
type Config struct {
	// Path of the database file. Its directory must exist and be writable;
	// the file is made with mode 0600 when it is not there. Required.
	Path string
	// MmapSize is how much address space is reserved for the file, in bytes
	// (default 8 GiB; it takes no memory). While the file is smaller, a long
	// View or Backup never holds up a writer.
	MmapSize int
	// RingBatches is how many of the newest batches are kept for Watch
	// (default 16384).
	RingBatches int
	// RingBytes bounds what those batches hold, in bytes (default 16 MiB, at
	// least 4 MiB).
	RingBytes int
	// Logger receives warnings about the file (default: none).
	Logger *slog.Logger
	// Registerer receives the store's metrics (default: none).
	Registerer prometheus.Registerer
}

// Validate says which field cannot be used, by its name in the configuration
// file.
func (c *Config) Validate() error {
	switch {
	case c.Path == "":
		return errors.New("store bolt: path is empty: name the database file")
	case c.MmapSize < 0:
		return fmt.Errorf("store bolt: mmap_size is %d: it cannot be negative", c.MmapSize)
	case c.RingBatches < 0:
		return fmt.Errorf("store bolt: ring_batches is %d: it cannot be negative", c.RingBatches)
	case c.RingBytes < 0 || c.RingBytes > 0 && c.RingBytes < 4*store.MaxBytes:
		return fmt.Errorf("store bolt: ring_bytes is %d: the least is %d", c.RingBytes, 4*store.MaxBytes)
	}
	return nil
}

// withDefaults returns a copy of c whose zero fields are filled in.
func (c Config) withDefaults() Config {
	if c.MmapSize == 0 && bits.UintSize == 64 {
		c.MmapSize = defaultMmapSize
	}
	if c.RingBatches == 0 {
		c.RingBatches = defaultRingBatches
	}
	if c.RingBytes == 0 {
		c.RingBytes = defaultRingBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
