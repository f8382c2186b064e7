package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

// defaults are a fleet's.
func defaults() fleetSpec {
	return fleetSpec{
		aliases: 1, seed: 1, agentTTL: time.Hour, parallel: 64, verbose: os.Stderr,
		cluster: clusterSpec{servers: 1},
	}
}

// fleetCommand is `bench fleet`: a run of one's own making.
func fleetCommand(o *options, args []string) (measurement, error) {
	spec := defaults()
	fs := flag.NewFlagSet("fleet", flag.ContinueOnError)
	fs.IntVar(&spec.agents, "agents", 500, "agents")
	fs.IntVar(&spec.entries, "entries", 1000, "entries, all below the aliases")
	fs.IntVar(&spec.aliases, "aliases", spec.aliases, "node aliases; agents and entries are spread over them")
	fs.Uint64Var(&spec.seed, "seed", spec.seed, "another set of entries of the same shape")
	fs.IntVar(&spec.warm, "rotate", 100, "SVIDs that each agent keeps fresh, renewed every 30 minutes")
	fs.DurationVar(&spec.changes, "changes", time.Second, "how often an entry that all agents of an alias have is changed; 0: never")
	fs.DurationVar(&spec.idle, "idle", 0, "measure at rest for this long first")
	fs.DurationVar(&spec.duration, "duration", 30*time.Second, "measure under load for this long")
	fs.DurationVar(&spec.poll, "poll", 0, "poll SPIRE's APIs this often, as SPIRE's agents do every 5s; 0: follow the push stream")
	fs.DurationVar(&spec.agentTTL, "agent-ttl", spec.agentTTL, "the life of agents' own SVIDs")
	fs.IntVar(&spec.parallel, "parallel", spec.parallel, "agents that come up at a time")
	fs.StringVar(&spec.nodes, "nodes", "", "where the nodes' certificates are kept; default: made for this run")
	fs.StringVar(&spec.profiles, "profiles", "", "write the first server's profiles of the load to this folder")
	fs.IntVar(&spec.cluster.servers, "servers", 1, "servers; more than one are put on an etcd")
	fs.BoolVar(&spec.cluster.etcd, "etcd", false, "put one server on an etcd too")
	restart := fs.Bool("restart", false, "restart the servers in turn, -duration apart, and report gaps")
	fs.StringVar(&spec.running.addrs, "at", "", "use running servers: host:port, comma separated; -nodes has the authorities that their x509pop trusts")
	fs.StringVar(&spec.running.admin, "admin", "", "with -at: the admin's socket of the first of them")
	fs.StringVar(&spec.running.pids, "pids", "", "with -at: their process IDs, comma separated")
	fs.StringVar(&spec.running.profiling, "profiling", "", "with -at: their profiling_port, comma separated")
	fs.StringVar(&o.json, "json", o.json, "write the results to this file too")
	fs.IntVar(&o.runs, "runs", 1, "how often it is repeated")
	if err := fs.Parse(args); err != nil {
		return measurement{}, err
	}
	if spec.running.named() && (spec.running.admin == "" || spec.nodes == "") {
		return measurement{}, errors.New("-at needs -admin and -nodes")
	}
	if *restart && spec.running.named() {
		return measurement{}, errors.New("-restart is for servers that this program started")
	}
	work := runFleet
	if *restart {
		work = rolling
	}
	spec.cluster.etcd = spec.cluster.etcd || spec.cluster.servers > 1
	return measurement{
		name: "fleet", what: fmt.Sprintf("%d agents, %d entries, %d servers", spec.agents, spec.entries, spec.cluster.servers),
		run: func(ctx context.Context, b *bench) (result, error) { return work(ctx, b, spec) },
	}, nil
}

// idleAgents measures P10.
func idleAgents(ctx context.Context, b *bench) (result, error) {
	spec := defaults()
	spec.agents, spec.entries, spec.idle = 1000, 10, cmp.Or(b.duration, time.Minute)
	return runFleet(ctx, b, spec)
}

// pollingAgents measures P10 with agents that know no push stream.
func pollingAgents(ctx context.Context, b *bench) (result, error) {
	spec := defaults()
	spec.agents, spec.entries, spec.idle, spec.poll = 1000, 10, cmp.Or(b.duration, time.Minute), 5*time.Second
	return runFleet(ctx, b, spec)
}

// largeFleet measures P20.
func largeFleet(ctx context.Context, b *bench) (result, error) {
	spec := defaults()
	spec.agents, spec.entries, spec.warm, spec.changes = 5000, 10_000, 100, time.Second
	spec.duration = cmp.Or(b.duration, 2*time.Minute)
	return runFleet(ctx, b, spec)
}
