package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Follow gives the whole content of the tables as one Commit (Reset), then every
// Update of the store as one Commit, in order and without gaps, to apply, in the
// caller's goroutine. When the consumer falls so far behind that the store has
// forgotten, it starts over with a Reset. It returns ctx.Err() when ctx ends, or
// the first error of apply, of the store, or of a record that cannot be read.
func (r *Registry) Follow(ctx context.Context, apply func(*Commit) error) error {
	for {
		at, err := r.reset(ctx, apply)
		if err != nil {
			return fmt.Errorf("reading the store: %w", err)
		}
		err = r.tail(ctx, at, apply)
		if !errors.Is(err, store.ErrCompacted) {
			return fmt.Errorf("following the store: %w", err)
		}
		r.log.LogAttrs(ctx, slog.LevelWarn, "fell behind the store's history, reading it anew",
			slog.Uint64(telemetry.Revision, uint64(at)))
	}
}

func (r *Registry) reset(ctx context.Context, apply func(*Commit) error) (store.Revision, error) {
	c := &Commit{StoreID: r.store.Info().ID, Reset: true}
	err := r.store.View(ctx, func(tx store.Tx) error {
		c.Revision = tx.Revision()
		return r.readAll(ctx, tx, c)
	})
	if err != nil {
		return 0, err
	}
	return c.Revision, apply(c)
}

// readAll fills c. Entries are most of a store: they are decoded in parallel.
func (r *Registry) readAll(ctx context.Context, tx store.Tx, c *Commit) error {
	for kv, err := range tx.Scan(tableBundle, "") {
		if err != nil {
			return err
		}
		b, err := decodeBundle(kv)
		if err != nil {
			return err
		}
		c.Bundles = append(c.Bundles, BundleChange{TrustDomain: b.TrustDomain, Now: b})
	}
	for kv, err := range tx.Scan(tableRelated, "") {
		if err != nil {
			return err
		}
		f, err := decodeRelationship(kv)
		if err != nil {
			return err
		}
		c.Relationships = append(c.Relationships, RelationshipChange{TrustDomain: f.TrustDomain, Now: f})
	}
	for kv, err := range tx.Scan(tableAgent, "") {
		if err != nil {
			return err
		}
		a, err := decodeAgent(r.td, kv)
		if err != nil {
			return err
		}
		c.Agents = append(c.Agents, AgentChange{ID: a.ID, Now: a})
	}
	blocks, err := readEntries(ctx, tx)
	if err != nil {
		return err
	}
	n := 0
	for _, b := range blocks {
		n += len(b.out)
	}
	c.Entries = make([]EntryChange, 0, n)
	for _, b := range blocks {
		for _, e := range b.out {
			c.Entries = append(c.Entries, EntryChange{ID: e.ID(), Now: e})
		}
	}
	return nil
}

// block is a run of neighbouring records.
type block struct {
	in  []store.KV
	out []*Packed
}

const blockSize = 1024

// readEntries scans on this goroutine and decodes on as many as there are
// processors, all of them done before it returns: values are good only inside
// the View.
func readEntries(ctx context.Context, tx store.Tx) ([]*block, error) {
	var blocks []*block
	work := make(chan *block, 2*runtime.GOMAXPROCS(0))
	g, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error { return decodeBlocks(work) })
	}
	g.Go(func() (err error) {
		defer close(work)
		blocks, err = scanBlocks(ctx, tx, work)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return blocks, nil
}

func scanBlocks(ctx context.Context, tx store.Tx, work chan<- *block) ([]*block, error) {
	var blocks []*block
	send := func(b *block) error {
		blocks = append(blocks, b)
		select {
		case work <- b:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b := &block{in: make([]store.KV, 0, blockSize)}
	for kv, err := range tx.Scan(tableEntry, "") {
		if err != nil {
			return nil, err
		}
		if b.in = append(b.in, kv); len(b.in) < blockSize {
			continue
		}
		if err := send(b); err != nil {
			return nil, err
		}
		b = &block{in: make([]store.KV, 0, blockSize)}
	}
	return blocks, send(b)
}

func decodeBlocks(work <-chan *block) error {
	var p packer
	for b := range work {
		b.out = make([]*Packed, len(b.in))
		for i, kv := range b.in {
			e, err := p.entry(kv)
			if err != nil {
				return err
			}
			b.out[i] = e
		}
		b.in = nil
	}
	return nil
}

// tail applies what the store commits after a revision.
func (r *Registry) tail(ctx context.Context, after store.Revision, apply func(*Commit) error) error {
	p := &packer{}
	for batch, err := range r.store.Watch(ctx, "", after) {
		if err != nil {
			return err
		}
		c := &Commit{StoreID: r.store.Info().ID, Revision: batch.Revision}
		for _, ev := range batch.Events {
			if err := r.decodeEvent(p, c, ev); err != nil {
				return err
			}
		}
		if err := apply(c); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// decodeEvent adds to c what one key's change means.
func (r *Registry) decodeEvent(p *packer, c *Commit, ev store.Event) error {
	kv := store.KV{Key: ev.Key, Value: ev.Value, ModRevision: c.Revision}
	switch {
	case strings.HasPrefix(ev.Key, tableEntry):
		change := EntryChange{ID: strings.TrimPrefix(ev.Key, tableEntry)}
		if !ev.Deleted() {
			e, err := p.entry(kv)
			if err != nil {
				return err
			}
			change.Now = e
		}
		c.Entries = append(c.Entries, change)
	case strings.HasPrefix(ev.Key, tableAgent):
		id, err := agentIDOf(r.td, ev.Key)
		if err != nil {
			return err
		}
		change := AgentChange{ID: id}
		if !ev.Deleted() {
			if change.Now, err = decodeAgent(r.td, kv); err != nil {
				return err
			}
		}
		c.Agents = append(c.Agents, change)
	case strings.HasPrefix(ev.Key, tableBundle):
		td, err := bundleDomainOf(ev.Key)
		if err != nil {
			return err
		}
		change := BundleChange{TrustDomain: td}
		if !ev.Deleted() {
			if change.Now, err = decodeBundle(kv); err != nil {
				return err
			}
		}
		c.Bundles = append(c.Bundles, change)
	case strings.HasPrefix(ev.Key, tableRelated):
		td, err := relationshipDomainOf(ev.Key)
		if err != nil {
			return err
		}
		change := RelationshipChange{TrustDomain: td}
		if !ev.Deleted() {
			if change.Now, err = decodeRelationship(kv); err != nil {
				return err
			}
		}
		c.Relationships = append(c.Relationships, change)
	}
	return nil
}
