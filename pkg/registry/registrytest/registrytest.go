package registrytest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// World is a registry over an embedded store, with an index that follows it.
type World struct {
	Registry *registry.Registry
	Index    *registry.Index
	// Logger is for what is under test; Log has what it said.
	Logger *slog.Logger
	Log    *Log
	// Away makes Fresh fail with store.ErrUnavailable, as when the store cannot
	// be reached.
	Away atomic.Bool
	// Slow makes the index late, as on a busy server.
	Slow atomic.Bool

	store store.Store
}

// Log collects what a logger writes.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write is io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String is all that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// New returns the world of one test. Each commit is given to the functions in
// also, in order, before the index has it.
func New(t testing.TB, td spiffeid.TrustDomain, also ...func(*registry.Commit)) *World {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := s.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	r, err := registry.New(ctx, registry.Config{Store: s, TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	w := &World{Registry: r, Index: registry.NewIndex(), Log: &Log{}, store: s}
	w.Logger = slog.New(slog.NewTextHandler(w.Log, nil))
	running.Go(func() {
		err := r.Follow(ctx, func(c *registry.Commit) error {
			if w.Slow.Load() {
				time.Sleep(50 * time.Millisecond)
			}
			for _, apply := range also {
				apply(c)
			}
			w.Index.Apply(c)
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
	})
	return w
}

// Fresh returns once the index has all that was committed before the call.
func (w *World) Fresh(ctx context.Context) error {
	if w.Away.Load() {
		return store.ErrUnavailable
	}
	head, err := w.store.Head(ctx)
	if err != nil {
		return err
	}
	return w.Index.WaitFor(ctx, head)
}
