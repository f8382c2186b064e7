package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

const samples = 200

func pemOf(b *types.Bundle) []byte {
	var out []byte
	for _, a := range b.GetX509Authorities() {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.GetAsn1()})...)
	}
	return out
}

// bystanders is how many streams are open under load.
const bystanders = 1000

func propagationQuiet(ctx context.Context, b *bench) (result, error) {
	return propagation(ctx, b, load{})
}

// propagationLoaded has the streams of another user open: the samples are of no
// concern to them.
func propagationLoaded(ctx context.Context, b *bench) (result, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("%w: needs root, to have processes of another user", errSkipped)
	}
	return propagation(ctx, b, load{others: true, commits: 100})
}

// propagationFanout has the streams open as the same user: each sample reaches
// all of them.
func propagationFanout(ctx context.Context, b *bench) (result, error) {
	return propagation(ctx, b, load{own: bystanders})
}

// load is what goes on beside the samples.
type load struct {
	own     int  // streams that get each sample too
	others  bool // bystanders streams that do not
	commits int  // a second
}

// propagation measures from the request *sent* to the change on the stream:
// what an operator's controller feels (P1, P2).
func propagation(ctx context.Context, b *bench, l load) (r result, err error) {
	p, err := b.newPair(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.join(ctx); err != nil {
		return nil, err
	}
	self := fmt.Sprintf("unix:uid:%d", os.Getuid())
	if _, err := create(ctx, p.admin, entryOf(p.agentID, "/bench/standing", self)); err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := p.watch(ctx)
	if err != nil {
		return nil, err
	}
	var background atomic.Int64
	for range l.own {
		if err := p.openStream(ctx, group, nil); err != nil {
			return nil, err
		}
	}
	if l.others {
		release, err := p.bystanders(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	if l.commits > 0 {
		group.Go(func() error { return p.commitAt(ctx, l.commits, &background) })
	}
	started := time.Now()
	var added, removed []time.Duration
	for i := range samples {
		path := fmt.Sprintf("/bench/sample-%d", i)
		start := time.Now()
		ids, err := create(ctx, p.admin, entryOf(p.agentID, path, self))
		if err != nil {
			return nil, err
		}
		at, err := w.until(ctx, path, true)
		if err != nil {
			return nil, err
		}
		added = append(added, at.Sub(start))
		start = time.Now()
		if _, err := entryv1.NewEntryClient(p.admin).BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: ids}); err != nil {
			return nil, err
		}
		if at, err = w.until(ctx, path, false); err != nil {
			return nil, err
		}
		removed = append(removed, at.Sub(start))
		// Samples are spread, so that each begins on a system at rest.
		time.Sleep(10 * time.Millisecond)
	}
	r = result{"samples": float64(samples)}
	r.latencies("create_", added)
	r.latencies("delete_", removed)
	r["commits_per_s"] = rounded(float64(background.Load()) / time.Since(started).Seconds())
	cancel()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return nil, err
	}
	return r, nil
}

// nobody is the user of the bystanders.
const nobody = 65534

// bystanders registers another user and has a process of it open streams; the
// returned function ends it.
func (p *pair) bystanders(ctx context.Context) (release func() error, err error) {
	if _, err := create(ctx, p.admin, entryOf(p.agentID, "/bench/bystander", fmt.Sprintf("unix:uid:%d", nobody))); err != nil {
		return nil, err
	}
	self := filepath.Join(p.b.scratch, "streams") // where others may run it
	if err := copyFile(self, "/proc/self/exe"); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-hold-streams", p.path("agent.sock")) //nolint:gosec // this program
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("the bystanders did not come up: %w", err), in.Close(), cmd.Wait())
	}
	return func() error { return errors.Join(in.Close(), cmd.Wait()) }, nil
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(to, data, 0o755) //nolint:gosec // a program
}

// holdStreams opens n streams, says so on standard output, and keeps them until
// standard input ends.
func holdStreams(ctx context.Context, socket string, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &pair{dir: filepath.Dir(socket)}
	group, ctx := errgroup.WithContext(ctx)
	for range n {
		if err := until(ctx, func() error { return p.openStream(ctx, group, nil) }); err != nil {
			return err
		}
	}
	if _, err := fmt.Println("open"); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	cancel()
	return group.Wait()
}

// commitAt makes entries of no concern to the streams, n a second.
func (p *pair) commitAt(ctx context.Context, n int, done *atomic.Int64) error {
	tick := time.NewTicker(time.Second / time.Duration(n))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if _, err := create(ctx, p.admin, batchOf(p.agentID, 1)...); err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the measurement is over
			}
			return err
		}
		done.Add(1)
	}
}

// sighting is one message of a stream.
type sighting struct {
	at    time.Time
	paths map[string]bool
}

type watcher struct{ seen chan sighting }

// watch follows a FetchX509SVID stream that reports what certificates say.
func (p *pair) watch(ctx context.Context) (*watcher, error) {
	w := &watcher{seen: make(chan sighting, 1024)}
	var group errgroup.Group
	err := until(ctx, func() error { return p.openStream(ctx, &group, w.seen) })
	return w, err
}

// openStream opens a stream on a connection of its own and waits for its first
// message; group has the goroutine that reads on.
func (p *pair) openStream(ctx context.Context, group *errgroup.Group, seen chan<- sighting) error {
	conn, err := dialUnix(p.path("agent.sock"))
	if err != nil {
		return err
	}
	stream, first, err := firstX509(ctx, conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	report := func(resp *workload.X509SVIDResponse) {
		if seen == nil {
			return
		}
		select {
		case seen <- sighted(resp):
		case <-ctx.Done():
		}
	}
	report(first)
	group.Go(func() error {
		defer conn.Close() //nolint:errcheck // the measurement is over
		for {
			resp, err := stream.Recv()
			if err != nil {
				if ctx.Err() != nil {
					return nil //nolint:nilerr // the measurement is over
				}
				return err
			}
			report(resp)
		}
	})
	return nil
}

func firstX509(ctx context.Context, conn *grpc.ClientConn) (workload.SpiffeWorkloadAPI_FetchX509SVIDClient, *workload.X509SVIDResponse, error) {
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(asWorkload(ctx), &workload.X509SVIDRequest{})
	if err != nil {
		return nil, nil, err
	}
	resp, err := stream.Recv()
	return stream, resp, err
}

// sighted reads the certificates, not the labels.
func sighted(resp *workload.X509SVIDResponse) sighting {
	s := sighting{at: time.Now(), paths: map[string]bool{}}
	for _, svid := range resp.GetSvids() {
		if certs, err := x509.ParseCertificates(svid.GetX509Svid()); err == nil && len(certs[0].URIs) == 1 {
			s.paths[certs[0].URIs[0].Path] = true
		}
	}
	return s
}

func (w *watcher) until(ctx context.Context, path string, there bool) (time.Time, error) {
	late := time.After(10 * time.Second)
	for {
		select {
		case s := <-w.seen:
			if s.paths[path] == there {
				return s.at, nil
			}
		case <-late:
			return time.Time{}, fmt.Errorf("%s was not seen to become present=%v within 10 s", path, there)
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}
