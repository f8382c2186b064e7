package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/credence-id/credence/test/bench/dataset"
	"google.golang.org/grpc"
)

// The fleet of P21, and what it is assumed to do.
const (
	planAgents, planEntries, planServers = 100_000, 1_000_000, 3
	// planWarm SVIDs are kept by each agent, renewed each half-life.
	planWarm = 100
	// planChanges a second are made, each of which reaches planReach of the
	// agents.
	planChanges, planReach = 1.0, 1.0
	// planEntitled is how many entries each agent holds.
	planEntitled = 10_000
)

// What the costs are measured with.
const (
	costAgents               = 500
	costFew, costMany        = 10, 2_000
	costEntries              = 50_000
	costChangesEvery         = 50 * time.Millisecond
	costWarm                 = 720 // 200 SVIDs a second
	mibPerGiB                = 1024.0
	microsecond, millisecond = 1e6, 1e3
)

// costs are what a server was measured to need.
type costs struct {
	base, entry, record, agent memory
	// CPU: of an idle agent a second, of a change at one agent, of an SVID, of
	// an agent that comes up, and of each entry that it is sent then; seconds.
	idle, change, svid, up, sent float64
}

// memory is in bytes.
type memory struct{ heap, stack float64 }

func (m memory) less(o memory) memory { return memory{m.heap - o.heap, m.stack - o.stack} }

func (m memory) per(n float64) memory { return memory{m.heap / n, m.stack / n} }

// plus adds n times o.
func (m memory) plus(n float64, o memory) memory {
	return memory{m.heap + n*o.heap, m.stack + n*o.stack}
}

// most is what the process may have: Go's collector begins when the heap has
// doubled.
func (m memory) most() float64 { return 2*m.heap + m.stack }

// plan measures what agents and entries cost, and calculates P21.
func plan(ctx context.Context, b *bench) (result, error) {
	c, err := b.costs(ctx)
	if err != nil {
		return nil, err
	}
	r := result{
		"cost_base_mib": mib(c.base.heap + c.base.stack), "cost_entry_bytes": rounded(c.entry.heap), "cost_agent_record_bytes": rounded(c.record.heap + c.record.stack),
		"cost_agent_stream_heap_bytes": rounded(c.agent.heap), "cost_agent_stream_stack_bytes": rounded(c.agent.stack),
		"cost_idle_agent_cpu_us_per_s": rounded(c.idle * microsecond), "cost_change_at_agent_cpu_us": rounded(c.change * microsecond),
		"cost_svid_cpu_us": rounded(c.svid * microsecond), "cost_agent_up_cpu_ms": rounded(c.up * millisecond), "cost_entry_sent_cpu_us": rounded(c.sent * microsecond),
	}
	for servers := planServers; servers >= planServers-1; servers-- {
		c.calculate(r, servers)
	}
	c.print(os.Stderr, r)
	return r, nil
}

// calculate adds the figures of one of the servers, when so many share the
// fleet.
func (c costs) calculate(r result, servers int) {
	connected := float64(planAgents) / float64(servers)
	m := c.base.plus(planEntries, c.entry).plus(planAgents-connected, c.record).plus(connected, c.agent)
	prefix := fmt.Sprintf("p21_%d_servers_", servers)
	r[prefix+"live_gib"] = gib(m.heap + m.stack)
	r[prefix+"memory_gib"] = gib(m.most())
	svids := connected * planWarm / halfLife.Seconds()
	idle, changes, minted := connected*c.idle, connected*planChanges*planReach*c.change, svids*c.svid
	r[prefix+"svids_per_s"] = rounded(svids)
	r[prefix+"cores"] = rounded(10*(idle+changes+minted)) / 10
	// One server's agents come to the others, with their cursors.
	moved := float64(planAgents) / planServers / (planServers - 1)
	r["p21_lost_server_cpu_s"] = rounded(moved * c.up)
	// The same if they had nothing, as after a restore.
	r["p21_lost_server_anew_cpu_s"] = rounded(moved * (c.up + planEntitled*c.sent))
}

func gib(bytes float64) float64 { return rounded(10*mib(bytes)/mibPerGiB) / 10 }

// print says how the figures come about.
func (c costs) print(w io.Writer, r result) {
	fmt.Fprintf(w, "\nP21: %d agents, %d entries, %d servers; each agent holds %d entries and keeps %d SVIDs; %g changes a second reach all agents\n",
		planAgents, planEntries, planServers, planEntitled, planWarm, planChanges)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(what string, bytes memory, n float64) {
		fmt.Fprintf(t, "  %s\t%.0f + %.0f bytes\t× %.0f\t= %.2f GiB live\n", what, bytes.heap, bytes.stack, n, (bytes.heap+bytes.stack)*n/(1<<30))
	}
	connected := float64(planAgents) / planServers
	line("a server alone, heap + stacks", c.base, 1)
	line("an entry", c.entry, planEntries)
	line("an agent elsewhere", c.record, planAgents-connected)
	line("an agent with its stream here", c.agent, connected)
	fmt.Fprintf(t, "  live, and at the most (2 × heap + stacks)\t\t\t= %v, %v GiB; with one server lost %v, %v GiB\n",
		r["p21_3_servers_live_gib"], r["p21_3_servers_memory_gib"], r["p21_2_servers_live_gib"], r["p21_2_servers_memory_gib"])
	fmt.Fprintf(t, "  CPU: idle agents %.1f µs a second, a change at an agent %.1f µs, an SVID %.0f µs\t\t\t= %v cores; with one server lost %v\n",
		c.idle*microsecond, c.change*microsecond, c.svid*microsecond, r["p21_3_servers_cores"], r["p21_2_servers_cores"])
	_ = t.Flush() // to a terminal
}

// costs measures one server.
func (b *bench) costs(ctx context.Context) (c costs, err error) {
	spec := defaults()
	spec.agents, spec.entries = costAgents, costFew
	spec.idle = cmp.Or(b.duration, 30*time.Second)
	t, err := b.open(ctx, spec)
	if err != nil {
		return c, err
	}
	defer func() { err = firstOf(err, t.close()) }()
	up := t.upCPU
	// 1. Agents at rest.
	if err := t.atRest(ctx); err != nil {
		return c, err
	}
	c.idle = t.idleCPU.Seconds() / spec.idle.Seconds() / costAgents
	connected, err := t.live(ctx)
	if err != nil {
		return c, err
	}
	// 2. A change at an agent, and an SVID.
	if c.change, c.svid, err = t.loadCosts(ctx, c.idle); err != nil {
		return c, err
	}
	// 3. Without their streams, and without agents or entries.
	if err := t.part(); err != nil {
		return c, err
	}
	if err := pause(ctx, settle); err != nil {
		return c, err
	}
	records, err := t.live(ctx)
	if err != nil {
		return c, err
	}
	c.agent = connected.less(t.before).per(costAgents)
	c.record = records.less(t.before).per(costAgents)
	c.base = t.before
	// 4. Coming up with more entries.
	if err := t.grow(ctx, costMany); err != nil {
		return c, err
	}
	if err := t.up(ctx, t.spec.cluster.nodes); err != nil {
		return c, err
	}
	c.up = up.Seconds() / costAgents
	c.sent = (t.upCPU - up).Seconds() / costAgents / (costMany - costFew)
	// 5. Entries, which are read anew at a restart.
	if err := t.part(); err != nil {
		return c, err
	}
	c.entry, err = t.entryCost(ctx)
	return c, err
}

// loadCosts are the CPU of a change at one agent and of an SVID, seconds.
func (t *theatre) loadCosts(ctx context.Context, idle float64) (change, svid float64, err error) {
	rest := idle * costAgents * t.spec.idle.Seconds()
	load := func(changes time.Duration, warm int) (float64, error) {
		t.spec.changes, t.spec.warm, t.spec.duration = changes, warm, t.spec.idle
		err := t.underLoad(ctx)
		return max(t.loadCPU.Seconds()-rest, 0), err
	}
	used, err := load(costChangesEvery, 0)
	if err != nil {
		return 0, 0, err
	}
	n, _ := t.result["changes"].(float64)
	change = used / max(n, 1) / costAgents
	if used, err = load(0, costWarm); err != nil {
		return 0, 0, err
	}
	n, _ = t.result["svids_per_s"].(float64)
	return change, used / max(n*t.spec.duration.Seconds(), 1), nil
}

// grow brings the server to n entries, of which all agents get each.
func (t *theatre) grow(ctx context.Context, n int) error {
	_, err := dataset.Fill(ctx, t.admins(), t.data(t.spec.cluster.nodes).Range(t.spec.entries, n))
	t.spec.entries = n
	return err
}

// entryCost is the memory of an entry of no agent that is connected.
func (t *theatre) entryCost(ctx context.Context) (memory, error) {
	var at [2]memory
	for i, n := range []int{costMany, costMany + costEntries} {
		if err := t.grow(ctx, n); err != nil {
			return memory{}, err
		}
		if err := end(t.members[0].cmd); err != nil {
			return memory{}, err
		}
		if err := t.begin(ctx, t.members[0]); err != nil {
			return memory{}, err
		}
		if err := listed(ctx, t.members[0].admins[0], n); err != nil {
			return memory{}, err
		}
		var err error
		if at[i], err = t.live(ctx); err != nil {
			return memory{}, err
		}
	}
	return at[1].less(at[0]).per(costEntries), nil
}

// listed waits until the server has loaded its entries.
func listed(ctx context.Context, conn grpc.ClientConnInterface, n int) error {
	return until(ctx, func() error { return listAll(ctx, conn, n) })
}

// live is the memory of the first server.
func (t *theatre) live(ctx context.Context) (memory, error) { return t.members[0].live(ctx) }
