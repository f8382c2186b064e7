package feedapi_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/pkg/server/apitest"
)

// clone is the mirror as it is now, for a later return to it.
func (m *mirror) clone() *mirror {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := newMirror()
	c.entries, c.bundles = maps.Clone(m.entries), maps.Clone(m.bundles)
	c.storeID, c.revision, c.sums = m.storeID, m.revision, m.sums
	return c
}

// reader is an agent that follows the feed badly: it reads slowly, leaves, comes
// back with what it held now or at any earlier time, with nothing, or with what
// it says is of another store. At every Synced its digest must be the server's.
type reader struct {
	world *apitest.World
	agent *apitest.Agent
	rnd   *rand.Rand

	mu     sync.Mutex
	mirror *mirror // guarded by mu
	past   []*mirror
}

func (r *reader) now() *mirror {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mirror
}

func (r *reader) run(ctx context.Context, t *testing.T) error {
	conn := r.world.Dial(t, &r.agent.Cert)
	for ctx.Err() == nil {
		if err := r.session(ctx, t, conn); err != nil {
			return err
		}
		m := r.now()
		r.past = append(r.past, m.clone())
		switch r.rnd.IntN(5) {
		case 0:
			m = newMirror()
		case 1:
			m = r.past[r.rnd.IntN(len(r.past))].clone()
		case 2:
			m = m.clone()
			m.storeID = "another"
		default:
			m = m.clone()
		}
		r.mu.Lock()
		r.mirror = m
		r.mu.Unlock()
	}
	return nil
}

// session follows until it has had enough or ctx ends.
func (r *reader) session(ctx context.Context, t *testing.T, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := r.now()
	s := watch(ctx, t, conn, m)
	for n := 5 + r.rnd.IntN(60); n > 0; n-- {
		if r.rnd.IntN(10) == 0 {
			time.Sleep(time.Duration(r.rnd.IntN(100)) * time.Millisecond)
		}
		err := m.step(s)
		switch {
		case errors.Is(err, errDiverged):
			return fmt.Errorf("agent %s at revision %d: %w", r.agent.ID, m.revision, err)
		case err != nil:
			return nil //nolint:nilerr // The end of the test, or of the stream.
		}
	}
	return nil
}

// changes makes random commits in a small world, so that they meet: aliases and
// entries below them, below agents and below each other, agents whose selectors
// change, bundles that come and go.
type changes struct {
	world   *apitest.World
	agents  []*apitest.Agent
	rnd     *rand.Rand
	entries []*registry.Entry
	n       int
}

var foreign = []spiffeid.TrustDomain{
	spiffeid.RequireTrustDomainFromString("one.test"),
	spiffeid.RequireTrustDomainFromString("two.test"),
}

func (c *changes) step(t *testing.T) {
	ctx := t.Context()
	reg := c.world.Registry
	switch c.rnd.IntN(12) {
	case 0, 1, 2, 3:
		var batch []*registry.Entry
		for range 1 + c.rnd.IntN(40) {
			batch = append(batch, c.entry(t))
		}
		for _, r := range reg.CreateEntries(ctx, batch) {
			if r.Err == nil {
				c.entries = append(c.entries, r.Entry)
			}
		}
	case 4, 5, 6:
		c.each(func(e *registry.Entry) {
			reg.UpdateEntries(ctx, []registry.EntryUpdate{{ID: e.ID, Change: func(e *registry.Entry) error {
				e.FederatesWith = c.domains()
				e.Hint = hint(c.rnd)
				if c.rnd.IntN(4) == 0 {
					e.ParentID = c.parent()
				}
				return nil
			}}})
		})
	case 7, 8:
		var ids []string
		for range 1 + c.rnd.IntN(10) {
			c.each(func(e *registry.Entry) { ids = append(ids, e.ID) })
		}
		reg.DeleteEntries(ctx, ids)
	case 9:
		a := c.agents[c.rnd.IntN(len(c.agents))]
		_, err := reg.UpdateAgent(ctx, a.ID, func(a *registry.Agent) error {
			a.Selectors = attest.NewSelectors(
				attest.Selector{Type: "test", Value: fmt.Sprint("group", c.rnd.IntN(3))},
				attest.Selector{Type: "test", Value: "all"},
			)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	case 10:
		_, err := reg.UpdateBundle(ctx, c.domain(), func(b *registry.Bundle) error {
			b.RefreshHint = time.Duration(1+c.rnd.IntN(1000)) * time.Second
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	case 11:
		c.deleteBundle(t)
	}
}

func (c *changes) deleteBundle(t *testing.T) {
	fresh := func(context.Context) error {
		c.world.Fresh(t)
		return nil
	}
	mode := registry.DeleteMode(c.rnd.IntN(3))
	err := c.world.Registry.DeleteBundle(t.Context(), foreign[c.rnd.IntN(len(foreign))], mode, c.world.Index, fresh)
	if _, federated := errors.AsType[*registry.FederatedError](err); err != nil && !federated && !errors.Is(err, registry.ErrNotFound) {
		t.Error(err)
	}
}

func (c *changes) each(f func(*registry.Entry)) {
	if len(c.entries) > 0 {
		f(c.entries[c.rnd.IntN(len(c.entries))])
	}
}

func (c *changes) entry(t *testing.T) *registry.Entry {
	c.n++
	e := c.world.Entry(t, c.parent(), fmt.Sprintf("/e/%d", c.n))
	e.Selectors = attest.NewSelectors(attest.Selector{Type: "test", Value: []string{"all", "group0", "group1", "group2"}[c.rnd.IntN(4)]})
	e.FederatesWith = c.domains()
	e.Hint = hint(c.rnd)
	return e
}

// hint makes entries large now and then, so that a reader who sleeps stops the
// stream.
func hint(rnd *rand.Rand) string {
	if rnd.IntN(3) == 0 {
		return strings.Repeat("x", 1000) + fmt.Sprint(rnd.Int())
	}
	return ""
}

func (c *changes) parent() spiffeid.ID {
	switch n := c.rnd.IntN(8); {
	case n < 2:
		return registry.ServerID(c.world.TrustDomain)
	case n < 5 && len(c.entries) > 0:
		return c.entries[c.rnd.IntN(len(c.entries))].SPIFFEID
	default:
		return c.agents[c.rnd.IntN(len(c.agents))].ID
	}
}

func (c *changes) domain() spiffeid.TrustDomain {
	if c.rnd.IntN(3) == 0 {
		return c.world.TrustDomain
	}
	return foreign[c.rnd.IntN(len(foreign))]
}

func (c *changes) domains() []spiffeid.TrustDomain {
	var out []spiffeid.TrustDomain
	for _, td := range foreign {
		if _, ok := c.world.Index.Bundle(td); ok && c.rnd.IntN(8) == 0 {
			out = append(out, td)
		}
	}
	return out
}

// TestConverge is the property of the feed: whatever is committed, and however
// badly agents read, each comes to hold exactly what it is entitled to.
func TestConverge(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := apitest.New(t, apitest.Options{})
	c := &changes{world: w, rnd: rand.New(rand.NewPCG(seed, 0))}
	var readers []*reader
	for i := range 4 {
		agent := w.NewAgent(t, fmt.Sprint("a", i))
		c.agents = append(c.agents, agent)
		readers = append(readers, &reader{
			world: w, agent: agent, rnd: rand.New(rand.NewPCG(seed, uint64(i)+1)), mirror: newMirror(),
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	for _, r := range readers {
		reading.Go(func() {
			if err := r.run(ctx, t); err != nil {
				t.Error(err)
			}
		})
	}
	for range 400 {
		c.step(t)
	}
	stop()
	reading.Wait()
	if t.Failed() {
		return
	}

	// With nothing changing any more, each catches up from where it is.
	w.Fresh(t)
	for _, r := range readers {
		m := r.now()
		s := watch(t.Context(), t, w.Dial(t, &r.agent.Cert), m)
		synced := m.synced
		until(t, s, m, func() bool { return m.synced > synced })
		assertHolds(t, w, r.agent, m)
	}
}

// TestConvergeLive: one stream that is never left, and read by fits and starts
// while commits go on, is right whenever they pause.
func TestConvergeLive(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := &changes{world: w, agents: []*apitest.Agent{agent}, rnd: rand.New(rand.NewPCG(seed, 1))}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m := newMirror()
	s := watch(ctx, t, w.Dial(t, &agent.Cert), m)
	until(t, s, m, m.isSynced)
	for round := range 50 {
		commits := 1 + rnd.IntN(4)
		if round%8 == 7 {
			commits = 40
		}
		read := rnd.IntN(2) == 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range commits {
				c.step(t)
			}
		}()
		for read && rnd.IntN(6) != 0 && !closed(done) && !holds(w, agent, m) {
			until(t, s, m, once())
		}
		<-done
		w.Fresh(t)
		until(t, s, m, func() bool { return ctx.Err() != nil || holds(w, agent, m) })
	}
	if m.synced == 1 {
		t.Error("the stream never fell back to buckets: this test does not test that")
	}
	assertHolds(t, w, agent, m)
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// once is a condition that holds the second time.
func once() func() bool {
	n := 0
	return func() bool { n++; return n > 1 }
}

// holds says whether the mirror has what the agent is entitled to now.
func holds(w *apitest.World, agent *apitest.Agent, m *mirror) bool {
	wantEntries, wantBundles := wantOf(w, w.Graph.Snapshot(agent.ID, time.Now()))
	entries, bundles := m.holds()
	return maps.Equal(wantEntries, entries) && maps.Equal(wantBundles, bundles)
}

func assertHolds(t *testing.T, w *apitest.World, agent *apitest.Agent, m *mirror) {
	t.Helper()
	wantEntries, wantBundles := wantOf(w, w.Graph.Snapshot(agent.ID, time.Now()))
	entries, bundles := m.holds()
	if diff := cmp.Diff(wantEntries, entries) + cmp.Diff(wantBundles, bundles); diff != "" {
		t.Errorf("%s holds something else than it is entitled to (-want +got):\n%s", agent.ID, diff)
	}
}
