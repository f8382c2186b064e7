package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const samples = 200

func pemOf(b *types.Bundle) []byte {
	var out []byte
	for _, a := range b.GetX509Authorities() {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.GetAsn1()})...)
	}
	return out
}

func propagationQuiet(ctx context.Context, b *bench) (result, error) {
	return propagation(ctx, b, 0, 0)
}

func propagationLoaded(ctx context.Context, b *bench) (result, error) {
	return propagation(ctx, b, 1000, 100)
}

// propagation measures from the request *sent* to the change on the stream:
// what an operator's controller feels (P1, P2).
func propagation(ctx context.Context, b *bench, streams, commits int) (r result, err error) {
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
	for range streams {
		if err := p.openStream(ctx, group, nil); err != nil {
			return nil, err
		}
	}
	if commits > 0 {
		group.Go(func() error { return p.commitAt(ctx, commits, &background) })
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
	r = result{"samples": float64(samples), "streams": float64(streams)}
	r.latencies("create_", added)
	r.latencies("delete_", removed)
	r["commits_per_s"] = rounded(float64(background.Load()) / time.Since(started).Seconds())
	cancel()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return nil, err
	}
	return r, nil
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
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
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
