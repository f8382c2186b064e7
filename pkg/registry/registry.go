package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

// Config of a Registry.
type Config struct {
	// Store holds the tables. Required; the caller closes it.
	Store store.Store
	// TrustDomain of the server. Required.
	TrustDomain spiffeid.TrustDomain
	// Logger receives what Run and Follow did on their own (default: none).
	Logger *slog.Logger
}

// Registry writes the tables. Each method that changes something returns after
// the store has it on disk. All methods may be called concurrently. Errors are
// the sentinels of this package, an [InvalidError], or wrap the store's.
//
// Reads are served by an [Index], except those that must see the newest commit
// of any server (the Load methods).
type Registry struct {
	store store.Store
	td    spiffeid.TrustDomain
	log   *slog.Logger
}

// New binds the store to the trust domain, once and for good, and refuses one
// that is bound to another (ErrTrustDomain). It starts nothing.
func New(ctx context.Context, cfg Config) (*Registry, error) {
	if cfg.Store == nil {
		return nil, errors.New("registry: Store is required")
	}
	if cfg.TrustDomain.IsZero() {
		return nil, errors.New("registry: TrustDomain is required")
	}
	r := &Registry{store: cfg.Store, td: cfg.TrustDomain, log: cfg.Logger}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	_, err := r.store.Update(ctx, r.bind)
	if err != nil {
		return nil, fmt.Errorf("binding the store to trust domain %q: %w", r.td.Name(), err)
	}
	return r, nil
}

func (r *Registry) bind(tx store.RWTx) error {
	kv, err := tx.Get(keyTrustDomain)
	switch {
	case errors.Is(err, store.ErrNotFound):
		tx.Put(keyTrustDomain, []byte(r.td.Name()))
		return nil
	case err != nil:
		return err
	case string(kv.Value) != r.td.Name():
		return fmt.Errorf("%w: it holds %q; set trust_domain to that, or use another data_dir", ErrTrustDomain, kv.Value)
	}
	return nil
}

// TrustDomain is the server's.
func (r *Registry) TrustDomain() spiffeid.TrustDomain { return r.td }

// present is the value of keys that say all there is to say.
var present = []byte{1}

// get reads a key that may be missing.
func get(tx store.Tx, key string) (kv store.KV, found bool, err error) {
	kv, err = tx.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return store.KV{}, false, nil
	}
	return kv, err == nil, err
}

// What one Update of a batch may cost: below the store's limits, so that an
// engine has room for its own bookkeeping.
const (
	batchOps   = store.MaxOps - 16
	batchBytes = store.MaxBytes * 3 / 4
	// batchUpdates run at once, to share a disk write.
	batchUpdates = 16
)

// item is one of many changes that are independent of each other.
type item struct {
	// ops and bytes are what it costs as a rule; when that was too little, the
	// Update is split.
	ops, bytes int
	// step makes the change, or gives the reason why it refuses to, having
	// written nothing. It may run again. err ends the Update.
	step func(tx store.RWTx) (refusal, err error)
	// done is told the outcome: the commit's revision, or err.
	done func(rev store.Revision, err error)
}

// run packs items into few Updates, which run side by side. Each item succeeds
// or fails by itself, but those of an Update that fails fail together.
func (r *Registry) run(ctx context.Context, items []item) {
	var g errgroup.Group
	g.SetLimit(batchUpdates)
	for len(items) > 0 {
		n := chunk(items)
		now := items[:n]
		items = items[n:]
		g.Go(func() error {
			r.runChunk(ctx, now)
			return nil
		})
	}
	_ = g.Wait() // Each outcome went to its item.
}

// chunk is how many of the items fit into one Update; at least one.
func chunk(items []item) int {
	ops, bytes := 0, 0
	for i, it := range items {
		ops += it.ops
		bytes += it.bytes
		if i > 0 && (ops > batchOps || bytes > batchBytes) {
			return i
		}
	}
	return len(items)
}

func (r *Registry) runChunk(ctx context.Context, items []item) {
	refusals := make([]error, len(items))
	rev, err := r.store.Update(ctx, func(tx store.RWTx) error {
		for i, it := range items {
			var err error
			if refusals[i], err = it.step(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, store.ErrTooLarge) && len(items) > 1 {
		half := len(items) / 2
		r.runChunk(ctx, items[:half])
		r.runChunk(ctx, items[half:])
		return
	}
	for i, it := range items {
		if err != nil {
			it.done(0, fmt.Errorf("writing to the store: %w", err))
			continue
		}
		it.done(rev, refusals[i])
	}
}
