package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/credence-id/credence/test/bench/dataset"
	"github.com/credence-id/credence/test/bench/fleet"
	"golang.org/x/sync/errgroup"
)

// fleetSpec is one run of a fleet.
type fleetSpec struct {
	agents, entries, aliases int
	seed                     uint64
	// warm is how many SVIDs each agent keeps fresh, renewed every half-life.
	warm int
	// changes is how often an entry is changed; 0: not.
	changes  time.Duration
	idle     time.Duration // measured at rest; 0: not
	duration time.Duration // measured under load; 0: not
	poll     time.Duration // 0: agents follow the push stream
	agentTTL time.Duration
	parallel int
	nodes    string // folder of the nodes' evidence
	profiles string // folder for the server's profiles; empty: none
	cluster  clusterSpec
	running  runningServers // in the place of servers of our own
	// verbose says how far it is.
	verbose io.Writer
}

// halfLife is when an SVID of an hour is renewed.
const halfLife = 30 * time.Minute

// theatre is a fleet and its servers, up and in sync.
type theatre struct {
	spec  fleetSpec
	fleet *fleet.Fleet
	*cluster
	result result
	group  *errgroup.Group
	leave  context.CancelFunc // nil: no agents

	// before is the first server's memory before the agents came.
	before memory
	// CPU of all servers while agents came up, at rest, and under load.
	upCPU, idleCPU, loadCPU time.Duration
}

// runFleet measures a fleet: coming up, at rest, under load.
func runFleet(ctx context.Context, b *bench, spec fleetSpec) (r result, err error) {
	t, err := b.open(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if spec.idle > 0 {
		if err := t.atRest(ctx); err != nil {
			return nil, err
		}
	}
	if spec.duration > 0 {
		if err := t.underLoad(ctx); err != nil {
			return nil, err
		}
	}
	return t.result, nil
}

func (t *theatre) say(format string, args ...any) {
	if t.spec.verbose != nil {
		fmt.Fprintf(t.spec.verbose, time.Now().Format("15:04:05 ")+format+"\n", args...)
	}
}

// open starts servers, fills them and brings all agents up.
func (b *bench) open(ctx context.Context, spec fleetSpec) (_ *theatre, err error) {
	dir := spec.nodes
	if dir == "" {
		dir = filepath.Join(b.scratch, "nodes")
	}
	nodes, err := fleet.LoadNodes(dir, max(spec.aliases, 1))
	if err != nil {
		return nil, err
	}
	spec.cluster.nodes, spec.cluster.agentTTL = nodes, spec.agentTTL
	var c *cluster
	if spec.running.named() {
		c, err = spec.running.attach(b, spec.cluster)
	} else {
		c, err = b.newCluster(ctx, spec.cluster)
	}
	if err != nil {
		return nil, err
	}
	t := &theatre{spec: spec, cluster: c, result: result{"agents": float64(spec.agents), "entries": float64(spec.entries), "seed": float64(spec.seed)}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if err := t.fill(ctx, nodes); err != nil {
		return nil, err
	}
	return t, t.up(ctx, nodes)
}

func (t *theatre) fill(ctx context.Context, nodes *fleet.Nodes) error {
	data := t.data(nodes)
	if err := dataset.SetBundles(ctx, t.members[0].admins[0], data.Federates); err != nil {
		return err
	}
	if _, err := dataset.Create(ctx, t.members[0].admins[0], data.AliasEntries()...); err != nil {
		return err
	}
	took, err := dataset.Fill(ctx, t.admins(), data.All())
	if err != nil {
		return err
	}
	t.result["fill_per_s"] = rounded(float64(t.spec.entries) / took.Seconds())
	t.say("%d entries created in %v", t.spec.entries, took.Round(time.Millisecond))
	return nil
}

func (t *theatre) data(nodes *fleet.Nodes) dataset.Spec {
	return dataset.Spec{
		TrustDomain: td, Seed: t.spec.seed, Entries: t.spec.entries, Aliases: nodes.Selectors(),
		Federates: []string{"one.test", "two.test", "three.test"}, FederatesShare: 0.05, Even: true,
	}
}

// up brings the agents up and measures that.
func (t *theatre) up(ctx context.Context, nodes *fleet.Nodes) error {
	bundle, err := t.bundle(ctx)
	if err != nil {
		return err
	}
	t.fleet, err = fleet.New(fleet.Config{
		Bundle: bundle, Servers: t.addrs(), Nodes: nodes, Agents: t.spec.agents, Parallel: t.spec.parallel, Poll: t.spec.poll,
	})
	if err != nil {
		return err
	}
	if t.before, err = t.members[0].live(ctx); err != nil {
		return err
	}
	before, err := t.figures()
	if err != nil {
		return err
	}
	ctx, t.leave = context.WithCancel(ctx)
	t.group, ctx = errgroup.WithContext(ctx)
	t.group.Go(func() error { return t.fleet.Run(ctx) })
	if err := t.allSynced(ctx); err != nil {
		return err
	}
	after, err := t.figures()
	if err != nil {
		return err
	}
	s := t.fleet.Stats().Sample()
	t.result["up_s"] = rounded(after.at.Sub(before.at).Seconds())
	t.upCPU = after.cpu - before.cpu
	t.result["up_server_cpu_ms_per_agent"] = rounded(100*ms(t.upCPU)/float64(max(t.spec.agents, 1))) / 100
	t.result["up_lost"] = s.Lost
	t.result["rss_anon_before_mib"], t.result["rss_anon_up_mib"] = before.anon, after.anon
	t.result.latencies("attest_", s.Attested)
	t.say("%d agents in sync with %d entries after %.1f s; server %.1f s CPU, %.0f MiB", t.spec.agents, t.fleet.Held(),
		after.at.Sub(before.at).Seconds(), (after.cpu - before.cpu).Seconds(), after.anon)
	return nil
}

// allSynced waits for all agents, and says how far they are.
func (t *theatre) allSynced(ctx context.Context) error {
	for {
		soon, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := t.fleet.Await(soon, t.spec.agents)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		t.say("%v; streams lost so far: %v", err, t.fleet.Stats().Sample().Lost)
	}
}

// figures are the servers' at one time.
type figures struct {
	at   time.Time
	cpu  time.Duration
	anon float64
}

func (t *theatre) figures() (figures, error) {
	used, err := t.cpu()
	if err != nil {
		return figures{}, err
	}
	anon, err := t.memory()
	return figures{time.Now(), used, anon}, err
}

// atRest measures what the fleet costs when nothing happens.
func (t *theatre) atRest(ctx context.Context) error {
	if err := pause(ctx, settle); err != nil {
		return err
	}
	t.fleet.Stats().Reset()
	before, err := t.figures()
	if err != nil {
		return err
	}
	if t.spec.profiles != "" {
		// It takes as long as the measurement, and costs less than one sample in
		// a hundred.
		err = t.fetch(ctx, "idle.pprof", fmt.Sprintf("profile?seconds=%d", int(t.spec.idle.Seconds())))
	} else {
		err = pause(ctx, t.spec.idle)
	}
	if err != nil {
		return err
	}
	after, err := t.figures()
	if err != nil {
		return err
	}
	took, s := after.at.Sub(before.at), t.fleet.Stats().Sample()
	t.result["idle_s"] = rounded(took.Seconds())
	t.idleCPU = after.cpu - before.cpu
	t.result["idle_cpu_pct"] = rounded(1000*float64(t.idleCPU)/float64(took)) / 10
	if t.spec.agents > 0 {
		t.result["idle_wire_bytes_per_agent_s"] = rounded(float64(s.Received+s.Sent) / float64(t.spec.agents) / took.Seconds())
		t.result["idle_payload_bytes"] = float64(s.Payload)
	}
	t.result["idle_rss_anon_mib"] = after.anon
	t.say("at rest: %.2f %% of a core, %.0f MiB", t.result["idle_cpu_pct"], after.anon)
	return nil
}

// settle is how long after a load the servers are given to clear up.
const settle = 5 * time.Second

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// underLoad measures rotation and changes.
func (t *theatre) underLoad(ctx context.Context) error {
	t.fleet.Stats().Reset()
	before, err := t.figures()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.spec.duration)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	if t.spec.warm > 0 {
		group.Go(func() error { return t.fleet.Rotate(ctx, fleet.Rotation{Warm: t.spec.warm, Every: halfLife}) })
	}
	var changes changes
	if t.spec.changes > 0 {
		group.Go(func() error { return t.change(ctx, &changes) })
	}
	if t.spec.profiles != "" {
		group.Go(func() error { return t.profile(ctx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	<-ctx.Done()
	after, err := t.figures()
	if err != nil {
		return err
	}
	t.loaded(before, after, &changes)
	return nil
}

func (t *theatre) loaded(before, after figures, c *changes) {
	took, s := after.at.Sub(before.at), t.fleet.Stats().Sample()
	r := t.result
	r["load_s"] = rounded(took.Seconds())
	t.loadCPU = after.cpu - before.cpu
	r["load_cores"] = rounded(100*t.loadCPU.Seconds()/took.Seconds()) / 100
	r["load_rss_anon_mib"] = after.anon
	r["svids_per_s"] = rounded(float64(len(s.Minted)) / took.Seconds())
	r["agents_renewed"], r["svids_missed"], r["diverged"] = float64(s.Renewed), float64(s.Missed), float64(s.Diverged)
	r["svids_failed"], r["lost"] = s.Failed, s.Lost
	r.latencies("svid_", s.Minted)
	r.latencies("svid_late_", s.Late)
	r.latencies("gap_", s.Gaps)
	r["changes"], r["changes_unreached"] = float64(len(c.last)), float64(c.unreached)
	r.latencies("change_any_agent_", c.all)
	r.latencies("change_last_agent_", c.last)
	t.say("under load: %.2f cores, %.0f MiB, %.0f SVIDs/s, changes at the last agent p99 %v ms", r["load_cores"], after.anon, r["svids_per_s"], r["change_last_agent_p99_ms"])
}

// part lets the agents go.
func (t *theatre) part() error {
	if t.leave == nil {
		return nil
	}
	t.leave()
	t.leave = nil
	return t.group.Wait()
}

// close lets the agents go and ends the servers.
func (t *theatre) close() error { return errors.Join(t.part(), t.cluster.stop()) }
