package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// Config of a Fleet. All fields are required but those that say otherwise.
type Config struct {
	// Bundle verifies the servers at first; what they send replaces it.
	Bundle *x509bundle.Bundle
	// Servers are host:port. Agents choose among them as the real agent does.
	Servers []string
	// Nodes are the machines, and Agents how many of them there are.
	Nodes  *Nodes
	Agents int
	// Parallel is how many agents come up at a time; default 64.
	Parallel int
	// Poll makes agents poll SPIRE's APIs, as SPIRE's own do; 0: they follow
	// the push stream.
	Poll time.Duration
	// Fresh leaves agents' own SVIDs to be renewed at half-life. Otherwise the
	// first renewal comes at any time before it, as in a fleet that has been
	// running.
	Fresh bool
	// Logger is told what goes wrong with agents; may be nil.
	Logger *slog.Logger
}

// Fleet is simulated agents. Its methods may be called concurrently, once Run
// was.
type Fleet struct {
	cfg    Config
	td     spiffeid.TrustDomain
	server spiffeid.ID
	table  *table
	agents []*agent
	stats  Stats
	slots  chan struct{}
	trust  trust
	// background has what closes connections that were replaced.
	background sync.WaitGroup

	mu sync.Mutex
	// guarded by mu:
	synced  int
	changed chan struct{} // closed and replaced when synced changes
}

// New makes the nodes' certificates if they are not there. It starts nothing.
func New(cfg Config) (*Fleet, error) {
	if cfg.Parallel == 0 {
		cfg.Parallel = 64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Fleet{
		cfg: cfg, td: cfg.Bundle.TrustDomain(), table: newTable(),
		slots: make(chan struct{}, cfg.Parallel), changed: make(chan struct{}),
	}
	f.trust.bundle.Store(cfg.Bundle)
	var err error
	if f.server, err = serverID(f.td); err != nil {
		return nil, err
	}
	for i := range cfg.Agents {
		file, id, err := cfg.Nodes.node(f.td, i)
		if err != nil {
			return nil, err
		}
		f.agents = append(f.agents, &agent{
			fleet: f, number: i, id: id, cache: newCache(f.table, f.trust.learn), route: f.newRoute(sourceOf(i)),
			prover: x509pop.NewProver(x509pop.ProverConfig{CertificatePath: file, PrivateKeyPath: file}),
		})
	}
	return f, nil
}

// IDs are the agents' SPIFFE IDs, known before they attest.
func (f *Fleet) IDs() []spiffeid.ID {
	out := make([]spiffeid.ID, len(f.agents))
	for i, a := range f.agents {
		out[i] = a.id
	}
	return out
}

// Run attests, connects and follows until the context ends, which is not an
// error. An agent that cannot is tried again, as on a real node.
func (f *Fleet) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, a := range f.agents {
		group.Go(func() error { return a.run(ctx) })
	}
	err := group.Wait()
	f.background.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Await returns when n agents are in sync at once.
func (f *Fleet) Await(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		synced, changed := f.synced, f.changed
		f.mu.Unlock()
		if synced >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d agents are in sync: %w", synced, n, context.Cause(ctx))
		}
	}
}

// Synced is how many agents are in sync.
func (f *Fleet) Synced() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

// Held is how many entries the agents hold, all together.
func (f *Fleet) Held() int {
	n := 0
	for _, a := range f.agents {
		n += a.cache.size()
	}
	return n
}

// Stats is what the agents have met with so far.
func (f *Fleet) Stats() *Stats { return &f.stats }

func (f *Fleet) count(d int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced += d
	close(f.changed)
	f.changed = make(chan struct{})
}

// trust is what the agents believe the servers' authorities to be.
type trust struct {
	bundle   atomic.Pointer[x509bundle.Bundle]
	mu       sync.Mutex
	revision uint64 // guarded by mu
}

// GetX509BundleForTrustDomain is x509bundle.Source.
func (t *trust) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return t.bundle.Load().GetX509BundleForTrustDomain(td)
}

// learn takes the own bundle, once for all agents. One that cannot be read is
// none.
func (t *trust) learn(b *feedv1.BundleState) {
	td := t.bundle.Load().TrustDomain()
	t.mu.Lock()
	defer t.mu.Unlock()
	if b.GetBundle().GetTrustDomain() != td.Name() || b.GetRevision() <= t.revision {
		return
	}
	next := x509bundle.New(td)
	for _, a := range b.GetBundle().GetX509Authorities() {
		certs, err := x509.ParseCertificates(a.GetAsn1())
		if err != nil {
			return
		}
		for _, c := range certs {
			next.AddX509Authority(c)
		}
	}
	t.revision = b.GetRevision()
	t.bundle.Store(next)
}
