package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/test/bench/fleet"
	"golang.org/x/sync/errgroup"
)

// longestGap is how long an agent may be without a server.
const longestGap = 5 * time.Second

// rollingRestart restarts three servers over an etcd one after the other, under
// 2,000 agents.
func rollingRestart(ctx context.Context, b *bench) (r result, err error) {
	spec := defaults()
	spec.agents, spec.entries, spec.warm = 2000, 1000, 100
	spec.duration = cmp.Or(b.duration, 20*time.Second)
	spec.cluster = clusterSpec{servers: 3, etcd: true}
	return rolling(ctx, b, spec)
}

// rolling restarts each server of the cluster; spec.duration is between one and
// the next.
func rolling(ctx context.Context, b *bench, spec fleetSpec) (r result, err error) {
	t, err := b.open(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer func() { err = firstOf(err, t.close()) }()
	t.fleet.Stats().Reset()
	before := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.fleet.Rotate(ctx, fleet.Rotation{Warm: spec.warm, Every: halfLife}) })
	peaks := &peaks{most: make([]float64, len(t.members))}
	group.Go(func() error { return peaks.watch(ctx, t.cluster) })
	err = t.restartEach(ctx)
	cancel()
	if err := firstOf(err, group.Wait()); err != nil {
		return nil, err
	}
	s := t.fleet.Stats().Sample()
	r = t.result
	r["restarted_s"] = rounded(time.Since(before).Seconds())
	r["svids"], r["svids_missed"], r["svids_repeated"] = float64(len(s.Minted)), float64(s.Missed), float64(len(s.Late))
	r["svids_failed"], r["lost"], r["moved"], r["diverged"] = s.Failed, s.Lost, float64(s.Moved), float64(s.Diverged)
	long := 0
	for _, gap := range s.Gaps {
		if gap > longestGap {
			long++
		}
	}
	r["gaps"], r["gaps_over_5s"] = float64(len(s.Gaps)), float64(long)
	r.latencies("gap_", s.Gaps)
	r.latencies("svid_late_", s.Late)
	r["cpu_peak_cores"] = slices.Max(peaks.most)
	t.say("restarted: %d gaps, longest %v ms, %d over 5 s; %d SVIDs missed; peak %.2f cores", len(s.Gaps), r["gap_max_ms"], long, s.Missed, r["cpu_peak_cores"])
	return r, nil
}

func (t *theatre) restartEach(ctx context.Context) error {
	for i, m := range t.members {
		start := time.Now()
		if err := end(m.cmd); err != nil {
			return fmt.Errorf("server %d did not end well: %w", i, err)
		}
		stopped := time.Since(start)
		if err := t.begin(ctx, m); err != nil {
			return err
		}
		if err := t.fleet.Await(ctx, t.spec.agents); err != nil {
			return err
		}
		t.say("server %d: stopped in %v, all agents in sync %v after", i, stopped.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
		if err := pause(ctx, t.spec.duration); err != nil {
			return err
		}
	}
	return nil
}

// peaks are the most that each server used of a processor in one second.
type peaks struct{ most []float64 }

func (p *peaks) watch(ctx context.Context, c *cluster) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := make([]sample, len(c.members))
	for {
		for i, m := range c.members {
			now := sample{pid: m.pid(), at: time.Now()}
			var err error
			if now.used, err = cpu(now.pid); err != nil {
				now.pid = 0 // it is being restarted
			}
			if before := last[i]; now.pid != 0 && before.pid == now.pid {
				p.most[i] = max(p.most[i], float64(now.used-before.used)/float64(now.at.Sub(before.at)))
			}
			last[i] = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sample is what a process had used at a time.
type sample struct {
	pid  int
	at   time.Time
	used time.Duration
}
