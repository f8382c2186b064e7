// Command bench measures the two programs from outside, as docs/performance.md
// reports: real binaries, real sockets, every commit on disk.
//
// It is a load harness, not a test: it asserts nothing and prints one JSON
// object a measurement. Read main.go for the list, then pair.go, which is a
// server and an agent under measurement.
//
//	go run ./test/bench all
//	go run ./test/bench -runs 3 p1 p12
//	go run ./test/bench -runs 3 -beside $SPIRE_BIN p3 p4
//
// With -beside, each run is made on a pair of SPIRE's programs and then on ours,
// and the last line of a measurement has the ratios of the medians: on a noisy
// machine only those count.
//
// CPU figures are the measured process's own, from /proc, and are steadier than
// times on a machine that also runs the load.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// result is what one measurement found; keys end in their unit.
type result map[string]any

// measurement runs once; runs are repeated by main.
type measurement struct {
	what string
	run  func(context.Context, *bench) (result, error)
	// peers says that it works on SPIRE's programs too, in bearable time.
	peers bool
}

var measurements = map[string]measurement{
	"p1":        {what: "entry created until its SVID is on a workload's stream", run: propagationQuiet},
	"p1-loaded": {what: "the same under 100 commits a second and 1,000 open streams of another user", run: propagationLoaded},
	"p1-fanout": {what: "the same when 1,000 more streams get each change", run: propagationFanout},
	"p3":        {what: "MintX509SVID, 64 callers", run: mintX509, peers: true},
	"p4":        {what: "MintJWTSVID, 64 callers", run: mintJWT, peers: true},
	"p5":        {what: "BatchNewX509SVID, 50 CSRs over mTLS", run: batchX509, peers: true},
	"p6":        {what: "BatchCreateEntry, batches of 50, alone and 8 callers, at 0 and at 100,000 entries", run: createEntries(100_000), peers: true},
	"p6-20k":    {what: "the same at 0 and at 20,000 entries, which SPIRE gets to in bearable time", run: createEntries(20_000), peers: true},
	"p7":        {what: "ListEntries, 100,000 entries, pages of 1,000", run: listEntries(100_000), peers: true},
	"p7-20k":    {what: "the same with 20,000 entries", run: listEntries(20_000), peers: true},
	"p12":       {what: "server start until it serves, empty and with 100,000 entries", run: coldServer},
	"p13":       {what: "agent start until a workload has its SVID", run: coldAgent},
	"p14":       {what: "FetchX509SVID, a new connection each, 16 callers", run: workloadX509, peers: true},
	"p15":       {what: "FetchJWTSVID cached by the agent, 16 callers", run: workloadJWT, peers: true},
	"p16":       {what: "ValidateJWTSVID, 16 callers", run: workloadValidate, peers: true},
	"p18":       {what: "memory of an idle server and an idle agent, sizes of the binaries", run: idle, peers: true},
}

// bench is what the measurements share: whose programs, and where.
type bench struct {
	server, agent string // paths of the binaries
	dataStore     string // the section of the server's configuration
	scratch       string
}

func main() {
	runs := flag.Int("runs", 3, "how often each measurement is repeated; the median is printed too")
	dir := flag.String("dir", "", "where stores are put; default a temporary folder. Its disk is part of what is measured")
	beside := flag.String("beside", "", "a directory with spire-server and spire-agent, to measure in the same run")
	streams := flag.String("hold-streams", "", "for the harness itself: open streams on this socket until standard input ends")
	flag.Usage = usage
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work := func() error { return run(ctx, options{runs: *runs, dir: *dir, beside: *beside}, flag.Args()) }
	if *streams != "" {
		work = func() error { return holdStreams(ctx, *streams, bystanders) }
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: bench [-runs N] [-dir DIR] all | NAME …")
	for _, name := range slices.Sorted(maps.Keys(measurements)) {
		fmt.Fprintf(os.Stderr, "  %-10s %s\n", name, measurements[name].what)
	}
	flag.PrintDefaults()
}

// options are the flags.
type options struct {
	runs        int
	dir, beside string
}

func run(ctx context.Context, o options, names []string) (err error) {
	if len(names) == 0 {
		usage()
		return fmt.Errorf("name a measurement, or all")
	}
	if names[0] == "all" {
		names = slices.Sorted(maps.Keys(measurements))
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
	ours := &bench{scratch: o.dir, dataStore: `DataStore "bolt" {}`}
	if err := ours.build(ctx); err != nil {
		return err
	}
	var theirs *bench
	if o.beside != "" {
		theirs = spire(o.beside, o.dir)
	}
	for _, name := range names {
		m, ok := measurements[name]
		if !ok {
			return fmt.Errorf("%q is not a measurement", name)
		}
		if err := m.repeat(ctx, name, o.runs, ours, theirs); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// repeat runs a measurement and prints its medians; theirs may be nil.
func (m measurement) repeat(ctx context.Context, name string, runs int, ours, theirs *bench) error {
	var own, peers []result
	for range runs {
		if m.peers && theirs != nil {
			r, err := m.run(ctx, theirs)
			if err != nil {
				return fmt.Errorf("on SPIRE: %w", err)
			}
			peers = append(peers, r)
		}
		r, err := m.run(ctx, ours)
		if err != nil {
			return err
		}
		own = append(own, r)
	}
	lines := []result{medians(own)}
	lines[0]["what"], lines[0]["runs"] = m.what, runs
	if len(peers) > 0 {
		lines = append(lines, medians(peers), ratios(lines[0], medians(peers)))
		lines[1]["of"], lines[2]["of"] = "spire", "spire/ours"
	}
	out := json.NewEncoder(os.Stdout)
	for _, line := range lines {
		line["name"] = name
		if err := out.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
