package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Of P17. The agent needs five files for a connection and leaves half of them to
// other users, so a small RLIMIT_NOFILE makes it fewer streams.
const (
	wantedStreams     = 2000
	filesPerStream    = 2 * 5
	spareFiles        = 512
	streamsPerAttempt = 16 // opened at a time
)

// manyStreams measures P17: what each of 2,000 streams takes, how long they
// take to open, and how long a change takes to the last of them.
func manyStreams(ctx context.Context, b *bench) (result, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("reading RLIMIT_NOFILE: %w", err)
	}
	n := int(min(wantedStreams, (files.Max-spareFiles)/filesPerStream))
	return onAgent(ctx, b, func(ctx context.Context, p *pair) (result, error) {
		r := result{"streams": float64(n)}
		before, err := anonMiB(p.agent.Process.Pid)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s := &streams{n: n, news: make(chan sighting, n)}
		start := time.Now()
		if err := s.open(ctx, p); err != nil {
			return nil, err
		}
		r["open_ms"] = ms(time.Since(start))
		if err := pause(ctx, settle); err != nil {
			return nil, err
		}
		after, err := anonMiB(p.agent.Process.Pid)
		if err != nil {
			return nil, err
		}
		r["agent_rss_anon_mib"], r["kib_per_stream"] = after, rounded((after-before)*1024/float64(n))
		took, err := s.change(ctx, p)
		if err != nil {
			return nil, err
		}
		r.latencies("change_", took)
		cancel()
		s.reading.Wait()
		return r, nil
	})
}

// streams are open on an agent; what they are sent comes to news.
type streams struct {
	n       int
	news    chan sighting
	reading sync.WaitGroup
}

func (s *streams) open(ctx context.Context, p *pair) error {
	var group errgroup.Group
	group.SetLimit(streamsPerAttempt)
	for range s.n {
		group.Go(func() error { return s.one(ctx, p) })
	}
	return group.Wait()
}

// one opens a stream on a connection of its own, waits for its first message
// and leaves a goroutine that reads on.
func (s *streams) one(ctx context.Context, p *pair) error {
	conn, err := dialUnix(p.path("agent.sock"))
	if err != nil {
		return err
	}
	stream, _, err := firstX509(ctx, conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	s.reading.Go(func() {
		defer conn.Close() //nolint:errcheck // the measurement is over
		for {
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case s.news <- received(resp):
			case <-ctx.Done():
				return
			}
		}
	})
	return nil
}

// received notes the names only: parsing 2,000 certificates is not what is
// measured.
func received(resp *workload.X509SVIDResponse) sighting {
	out := sighting{at: time.Now(), paths: map[string]bool{}}
	for _, svid := range resp.GetSvids() {
		out.paths[svid.GetSpiffeId()] = true
	}
	return out
}

// change creates an entry that all streams get, five times, and returns how
// long it was each time until the last of them had it.
func (s *streams) change(ctx context.Context, p *pair) ([]time.Duration, error) {
	var out []time.Duration
	for i := range 5 {
		path := fmt.Sprintf("/bench/fanout-%d", i)
		start := time.Now()
		if _, err := create(ctx, p.admin, entryOf(p.agentID, path, fmt.Sprintf("unix:uid:%d", os.Getuid()))); err != nil {
			return nil, err
		}
		var seen []time.Duration
		for len(seen) < s.n {
			select {
			case n := <-s.news:
				if n.paths["spiffe://"+trustDomain+path] {
					seen = append(seen, n.at.Sub(start))
				}
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(changeTimeout):
				return nil, fmt.Errorf("%d of %d streams have the change", len(seen), s.n)
			}
		}
		out = append(out, slices.Max(seen))
	}
	return out, nil
}
