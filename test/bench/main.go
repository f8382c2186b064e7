// Command bench measures the two programs from outside, as docs/performance.md
// reports: real binaries, real sockets, every commit on disk.
//
// It is a load harness, not a test: it asserts nothing and prints one JSON
// object a measurement. Read main.go for the list, then pair.go, which is a
// server and an agent under measurement.
//
//	go run ./test/bench all
//	go run ./test/bench -runs 3 p1 p12
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
}

var measurements = map[string]measurement{
	"p1":        {"entry created until its SVID is on a workload's stream", propagationQuiet},
	"p1-loaded": {"the same under 100 commits a second and 1,000 open streams of another user", propagationLoaded},
	"p1-fanout": {"the same when 1,000 more streams get each change", propagationFanout},
	"p3":        {"MintX509SVID, 64 callers", mintX509},
	"p4":        {"MintJWTSVID, 64 callers", mintJWT},
	"p5":        {"BatchNewX509SVID, 50 CSRs over mTLS", batchX509},
	"p6":        {"BatchCreateEntry, batches of 50, alone and 8 callers, at 0 and at 100,000 entries", createEntries},
	"p12":       {"server start until it serves, empty and with 100,000 entries", coldServer},
	"p13":       {"agent start until a workload has its SVID", coldAgent},
	"p18":       {"memory of an idle server and an idle agent, sizes of the binaries", idle},
}

// bench is what the measurements share.
type bench struct {
	server, agent string // paths of the binaries
	scratch       string
}

func main() {
	runs := flag.Int("runs", 3, "how often each measurement is repeated; the median is printed too")
	dir := flag.String("dir", "", "where stores are put; default a temporary folder. Its disk is part of what is measured")
	streams := flag.String("hold-streams", "", "for the harness itself: open streams on this socket until standard input ends")
	flag.Usage = usage
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work := func() error { return run(ctx, *runs, *dir, flag.Args()) }
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

func run(ctx context.Context, runs int, dir string, names []string) (err error) {
	if len(names) == 0 {
		usage()
		return fmt.Errorf("name a measurement, or all")
	}
	if names[0] == "all" {
		names = slices.Sorted(maps.Keys(measurements))
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "credence-bench-"); err != nil {
			return err
		}
		defer func() { err = firstOf(err, os.RemoveAll(dir)) }()
	}
	// Other users' processes are part of some measurements.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // made for this run
		return err
	}
	b := &bench{scratch: dir}
	if err := b.build(ctx); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for _, name := range names {
		m, ok := measurements[name]
		if !ok {
			return fmt.Errorf("%q is not a measurement", name)
		}
		var all []result
		for range runs {
			r, err := m.run(ctx, b)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all = append(all, r)
		}
		r := medians(all)
		r["name"], r["what"], r["runs"] = name, m.what, runs
		if err := out.Encode(r); err != nil {
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
