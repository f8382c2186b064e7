package failover

import (
	"runtime"
	"syscall"
	"testing"
	"time"
)

// size is how many agents the fleet has.
func size() int {
	if soaking() {
		return 300
	}
	return 30
}

// cpu is what the process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestRollingRestart: each server is stopped and started again, one after the
// other. No agent is without a server, and no SVID is renewed late.
func TestRollingRestart(t *testing.T) {
	c := newCluster(t, 3, 4*time.Second)
	f := c.newFleet(size())
	workloads := []*workload{f.agents[0].watch(t), f.agents[1].watch(t), f.agents[2].watch(t)}
	end := f.observe(5 * time.Millisecond)
	begin, used := time.Now(), cpu(t)
	for i, n := range c.servers {
		had, start := n.proxy.open(), time.Now()
		if err := n.stop(); err != nil {
			t.Errorf("server %d: %v", i, err)
		}
		t.Logf("server %d of %d connections is stopped after %v", i, had, time.Since(start))
		n.start()
		time.Sleep(time.Second) // The operator looks whether it is well.
	}
	if rest := agentTTL*6/10 - time.Since(begin); rest > 0 {
		time.Sleep(rest) // Each SVID is renewed once.
	}
	took := time.Since(begin)
	end()
	agents, longest := f.gaps()
	least, all := f.renewals()
	t.Logf("%d agents, three restarts in %v: %d were without a server, the longest for %v; %d renewals, at least %d each; %.0f %% of %d CPUs",
		len(f.agents), took, agents, longest, all, least, 100*float64(cpu(t)-used)/float64(took)/float64(runtime.NumCPU()), runtime.NumCPU())
	f.requireTime()
	if longest > 2*time.Second {
		t.Errorf("an agent was without a server for %v", longest)
	}
	if least < 1 {
		t.Error("an agent's SVID was not renewed: this test proves nothing")
	}
	for _, w := range workloads {
		w.check()
	}
	f.check()
}

// TestKilledServer: the agents of a server that is gone at once are in sync
// elsewhere within 2 s, and go on being served.
func TestKilledServer(t *testing.T) {
	c := newCluster(t, 3, 0)
	f := c.newFleet(size())
	end := f.observe(5 * time.Millisecond)
	victim := c.servers[0]
	had := victim.proxy.open()
	victim.proxy.kill()
	time.Sleep(3 * time.Second)
	end()
	agents, longest := f.gaps()
	t.Logf("the killed server had %d connections; %d agents were without a server, the longest for %v", had, agents, longest)
	f.requireTime()
	if had == 0 || agents < had-1 {
		t.Errorf("%d agents were seen to be without a server, of %d: this test proves nothing", agents, had)
	}
	if longest > 2*time.Second {
		t.Errorf("an agent was without a server for %v", longest)
	}
	for i, m := range f.agents {
		if err := m.Healthy(t.Context()); err != nil {
			t.Errorf("agent %d: %v", i, err)
		}
	}
	f.check()
}

// TestSilentServer: a server that says nothing any more is left within the
// keepalive's 15 s, and what the agents do then.
func TestSilentServer(t *testing.T) {
	if !soaking() {
		t.Skip("it takes 20 s of real time: SOAK; pkg/agent has it with the time of a bubble")
	}
	c := newCluster(t, 3, 0)
	f := c.newFleet(size())
	victim := c.servers[0]
	had := victim.proxy.open()
	victim.proxy.hush()
	end := f.observe(5 * time.Millisecond)
	begin := time.Now()
	for time.Since(begin) < 17*time.Second {
		time.Sleep(100 * time.Millisecond)
	}
	end()
	agents, longest := f.gaps()
	t.Logf("the silent server had %d connections; after 17 s it has %d; %d agents were without a stream, the longest for %v after they knew", had, victim.proxy.open(), agents, longest)
	f.requireTime()
	if had == 0 || longest > 2*time.Second {
		t.Errorf("of %d, an agent was without a server for %v after it knew", had, longest)
	}
	for i, m := range f.agents {
		if err := m.Healthy(t.Context()); err != nil {
			t.Errorf("agent %d: %v", i, err)
		}
	}
	f.check()
}
