package failover

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// fleet is agents, and what is seen of them.
type fleet struct {
	t      *testing.T
	agents []*member
	stop   func()
	// late is how late the observer was at most, by the scheduler.
	late time.Duration
}

// member is one agent.
type member struct {
	*agent.Agent
	journal *journal
	socket  string

	mu sync.Mutex
	// guarded by mu:
	away    time.Time // since when it is without a server; zero: it has one
	longest time.Duration
	ended   error
}

// newFleet starts agents, each with a workload's entry, and returns when all are
// in sync.
func (c *cluster) newFleet(size int) *fleet {
	c.t.Helper()
	bundle := filepath.Join(c.dir, "bundle.pem")
	if err := os.WriteFile(bundle, c.bundlePEM(), 0o600); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	var running sync.WaitGroup
	f := &fleet{t: c.t, stop: func() {
		cancel()
		running.Wait()
	}}
	c.t.Cleanup(f.stop)
	ready := make(chan struct{}, size)
	for i := range size {
		m := c.newMember(i, bundle, ready)
		f.agents = append(f.agents, m)
		running.Go(func() {
			err := m.Run(ctx)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.ended = err
		})
	}
	c.t.Cleanup(func() {
		for i, m := range f.agents {
			if c.t.Failed() && i < 3 {
				c.t.Logf("agent %d:\n%s", i, tail(m.journal.String()))
			}
		}
	})
	patience := time.After(time.Minute)
	for i := range size {
		select {
		case <-ready:
		case <-patience:
			c.t.Fatalf("%d of %d agents are in sync after a minute", i, size)
		}
	}
	return f
}

func (c *cluster) newMember(i int, bundle string, ready chan<- struct{}) *member {
	c.t.Helper()
	admin := c.servers[i%len(c.servers)].admin
	token, err := agentv1.NewAgentClient(admin).CreateJoinToken(c.t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := entryv1.NewEntryClient(admin).BatchCreateEntry(c.t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		SpiffeId:  &types.SPIFFEID{TrustDomain: trustDomain, Path: fmt.Sprint("/workload/", i)},
		ParentId:  &types.SPIFFEID{TrustDomain: trustDomain, Path: "/spire/agent/join_token/" + token.GetValue()},
		Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprint("uid:", os.Getuid())}},
	}}})
	if err != nil || resp.GetResults()[0].GetStatus().GetCode() != int32(codes.OK) {
		c.t.Fatalf("making an entry: %v, %v", resp, err)
	}
	dir := filepath.Join(c.dir, fmt.Sprint("a", i))
	m := &member{journal: &journal{}, socket: filepath.Join(dir, "api.sock")}
	cfg := &agent.Config{
		Agent: agent.Section{
			DataDir: filepath.Join(dir, "data"), TrustDomain: trustDomain, ServerAddresses: c.addresses(),
			SocketPath: m.socket, TrustBundlePath: bundle, JoinToken: token.GetValue(),
		},
		Plugins: plugins(c.t, "KeyManager \"memory\" {}\nNodeAttestor \"join_token\" {}\nWorkloadAttestor \"unix\" {}"),
	}
	cfg.SetDefaults()
	if m.Agent, err = agent.New(cfg, agent.Options{Log: m.journal.logger(), Ready: func() { ready <- struct{}{} }}); err != nil {
		c.t.Fatal(err)
	}
	return m
}

// observe looks at every agent until it is told to end, and returns then.
func (f *fleet) observe(every time.Duration) (end func()) {
	ctx, cancel := context.WithCancel(f.t.Context())
	var looking sync.WaitGroup
	looking.Go(func() {
		for last := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(every):
			}
			f.late = max(f.late, time.Since(last)-every)
			last = time.Now()
			for _, m := range f.agents {
				m.look(m.Healthy(ctx) == nil || ctx.Err() != nil, time.Now())
			}
		}
	})
	return func() {
		cancel()
		looking.Wait()
		for _, m := range f.agents {
			m.look(true, time.Now())
		}
	}
}

func (m *member) look(well bool, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !well && m.away.IsZero():
		m.away = now
	case well && !m.away.IsZero():
		m.longest = max(m.longest, now.Sub(m.away))
		m.away = time.Time{}
	}
}

// tooLate is how late the observer may be.
const tooLate = 250 * time.Millisecond

// requireTime skips what is left of a test that measures, where this process
// does not get to run: it would measure that.
func (f *fleet) requireTime() {
	f.t.Helper()
	if f.late > tooLate {
		f.t.Skipf("this machine is too busy to measure anything: the observer came %v late", f.late)
	}
}

// gaps are how many agents were without a server, and the longest time of one.
func (f *fleet) gaps() (agents int, longest time.Duration) {
	for _, m := range f.agents {
		m.mu.Lock()
		if m.longest > 0 {
			agents++
		}
		longest = max(longest, m.longest)
		m.mu.Unlock()
	}
	return agents, longest
}

// check says what no agent may have come to.
func (f *fleet) check() {
	f.t.Helper()
	for i, m := range f.agents {
		m.mu.Lock()
		if m.ended != nil {
			f.t.Errorf("agent %d ended: %v", i, m.ended)
		}
		m.mu.Unlock()
		if n := m.journal.count("msg=attested"); n != 1 {
			f.t.Errorf("agent %d attested %d times: it has missed a renewal", i, n)
		}
	}
}

// renewals is how often the agents' SVIDs were renewed: the agent with the
// least, and all.
func (f *fleet) renewals() (least, all int) {
	for i, m := range f.agents {
		n := m.journal.count("renewed the agent's SVID")
		if all += n; i == 0 || n < least {
			least = n
		}
	}
	return least, all
}
