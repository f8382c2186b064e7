// Command bench measures the two programs from outside, as docs/performance.md
// reports: real binaries, real sockets, every commit on disk.
//
// It is a load harness, not a test: it asserts nothing, prints a table for each
// measurement, and with -json writes one document for the run. Read measures.go
// for the list, then pair.go, which is a server and an agent under measurement,
// and fleetload.go, which is servers under a simulated fleet (package fleet).
//
//	go run ./test/bench all
//	go run ./test/bench -runs 3 p1 p12
//	go run ./test/bench -runs 3 -beside $SPIRE_BIN p3 p4
//	go run ./test/bench -json out.json -duration 10m p10
//	go run ./test/bench fleet -agents 2000 -entries 5000 -duration 2m
//
// With -beside, each run is made on a pair of SPIRE's programs and then on ours,
// and the last table of a measurement has the ratios of the medians: on a noisy
// machine only those count.
//
// CPU figures are the measured process's own, from /proc, and are steadier than
// times on a machine that also runs the load.
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// bench is what the measurements share: whose programs, and where.
type bench struct {
	server, agent string // paths of the binaries
	dataStore     string // the section of the server's configuration
	scratch       string
	// duration is how long measurements at rest and of fleets take; 0: what
	// each takes by itself.
	duration time.Duration
	// sizes are how many entries growth is measured at.
	sizes []int
}

// options are the flags.
type options struct {
	runs                   int
	dir, bin, beside, json string
	duration               time.Duration
	sizes                  sizes
}

func main() {
	o := options{sizes: sizes{10_000, 100_000}}
	flag.IntVar(&o.runs, "runs", 3, "how often each measurement is repeated; the median is printed")
	flag.StringVar(&o.dir, "dir", "", "where stores are put; default a temporary folder. Its disk is part of what is measured")
	flag.StringVar(&o.bin, "bin", "", "a directory with credence-server and credence-agent; default: they are built")
	flag.StringVar(&o.beside, "beside", "", "a directory with spire-server and spire-agent, to measure in the same run")
	flag.StringVar(&o.json, "json", "", "write the results to this file too")
	flag.DurationVar(&o.duration, "duration", 0, "how long to measure at rest or under a fleet's load; default: what each measurement says")
	flag.Var(&o.sizes, "sizes", "how many entries to measure growth at, comma separated")
	streams := flag.String("hold-streams", "", "for the harness itself: open streams on this socket until standard input ends")
	flag.Usage = usage
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work := func() error { return run(ctx, o, flag.Args()) }
	if *streams != "" {
		work = func() error { return holdStreams(ctx, *streams, bystanders) }
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: bench [flags] all | NAME … | fleet [flags of a fleet]")
	for _, name := range slices.Sorted(maps.Keys(measurements)) {
		fmt.Fprintf(os.Stderr, "  %-12s %s\n", name, measurements[name].what)
	}
	flag.PrintDefaults()
}

func run(ctx context.Context, o options, names []string) (err error) {
	chosen, err := choose(&o, names)
	if err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "credence-bench-"); err != nil {
			return err
		}
		defer func() { err = firstOf(err, os.RemoveAll(o.dir)) }()
	}
	// Other users' processes are part of some measurements.
	if err := os.Chmod(o.dir, 0o711); err != nil { //nolint:gosec // made for this run
		return err
	}
	doc := newDocument(ctx)
	ours := &bench{scratch: o.dir, dataStore: `DataStore "bolt" {}`, duration: o.duration, sizes: o.sizes}
	if err := ours.build(ctx, o.bin); err != nil {
		return err
	}
	var theirs *bench
	if o.beside != "" {
		theirs = spire(o.beside, o.dir)
	}
	for _, m := range chosen {
		results, err := m.repeat(ctx, o.runs, ours, theirs)
		if err != nil {
			return firstOf(fmt.Errorf("%s: %w", m.name, err), doc.write(o.json))
		}
		for _, r := range results {
			if err := r.table(os.Stdout); err != nil {
				return err
			}
		}
		doc.Results = append(doc.Results, results...)
	}
	return doc.write(o.json)
}

// choose finds the measurements that are named.
func choose(o *options, names []string) ([]measurement, error) {
	switch {
	case len(names) == 0:
		usage()
		return nil, fmt.Errorf("name a measurement, or all")
	case names[0] == "fleet":
		m, err := fleetCommand(o, names[1:])
		return []measurement{m}, err
	case names[0] == "all":
		names = slices.Sorted(maps.Keys(measurements))
	}
	var out []measurement
	for _, name := range names {
		m, ok := measurements[name]
		if !ok {
			return nil, fmt.Errorf("%q is not a measurement", name)
		}
		m.name = name
		out = append(out, m)
	}
	return out, nil
}

// repeat runs a measurement; theirs may be nil. A measurement that cannot be
// made here says why, and is none.
func (m measurement) repeat(ctx context.Context, runs int, ours, theirs *bench) ([]measured, error) {
	var own, peers []result
	for range runs {
		if m.peers && theirs != nil {
			r, err := m.run(ctx, theirs)
			if err != nil {
				return nil, fmt.Errorf("on SPIRE: %w", err)
			}
			peers = append(peers, r)
		}
		r, err := m.run(ctx, ours)
		if skipped(err) {
			fmt.Fprintf(os.Stderr, "%s is left out: %v\n", m.name, err)
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		own = append(own, r)
	}
	out := []measured{summary(m.name, m.what, "", own)}
	if len(peers) > 0 {
		their := summary(m.name, m.what, "spire", peers)
		out = append(out, their, ratio(out[0], their))
	}
	return out, nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
