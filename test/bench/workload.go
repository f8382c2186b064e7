package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// workloadCallers is how many callers ask the agent at once.
const workloadCallers = 16

// onAgent measures an agent that has an identity for this process.
func onAgent(ctx context.Context, b *bench, measure func(context.Context, *pair) (result, error)) (r result, err error) {
	p, err := b.newPair(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.join(ctx); err != nil {
		return nil, err
	}
	if _, err := create(ctx, p.admin, entryOf(p.agentID, "/bench/workload", fmt.Sprintf("unix:uid:%d", os.Getuid()))); err != nil {
		return nil, err
	}
	if err := until(ctx, func() error { return p.askAgent(ctx) }); err != nil {
		return nil, err
	}
	return measure(ctx, p)
}

// workloadX509 measures P14: connect, first message, close.
func workloadX509(ctx context.Context, b *bench) (result, error) {
	return onAgent(ctx, b, func(ctx context.Context, p *pair) (result, error) {
		return closedLoop(ctx, p.agent.Process.Pid, workloadCallers, 1, func(ctx context.Context, _, _ int) error { return p.askAgent(ctx) })
	})
}

// workloadJWT measures P15.
func workloadJWT(ctx context.Context, b *bench) (result, error) {
	return onAgent(ctx, b, func(ctx context.Context, p *pair) (result, error) {
		return p.workloadLoop(ctx, func(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error {
			_, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"bench"}})
			return err
		})
	})
}

// workloadValidate measures P16.
func workloadValidate(ctx context.Context, b *bench) (result, error) {
	return onAgent(ctx, b, func(ctx context.Context, p *pair) (result, error) {
		conn, err := dialUnix(p.path("agent.sock"))
		if err != nil {
			return nil, err
		}
		got, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchJWTSVID(asWorkload(ctx), &workload.JWTSVIDRequest{Audience: []string{"bench"}})
		if err = errors.Join(err, conn.Close()); err != nil {
			return nil, err
		}
		req := &workload.ValidateJWTSVIDRequest{Audience: "bench", Svid: got.GetSvids()[0].GetSvid()}
		return p.workloadLoop(ctx, func(ctx context.Context, c workload.SpiffeWorkloadAPIClient) error {
			_, err := c.ValidateJWTSVID(ctx, req)
			return err
		})
	})
}

// workloadLoop is a closed loop of callers with a connection each.
func (p *pair) workloadLoop(ctx context.Context, do func(context.Context, workload.SpiffeWorkloadAPIClient) error) (result, error) {
	var conns [workloadCallers]*grpc.ClientConn
	for i := range conns {
		var err error
		if conns[i], err = dialUnix(p.path("agent.sock")); err != nil {
			return nil, err
		}
		defer conns[i].Close() //nolint:errcheck // the measurement is over
	}
	return closedLoop(ctx, p.agent.Process.Pid, workloadCallers, 1, func(ctx context.Context, caller, _ int) error {
		return do(asWorkload(ctx), workload.NewSpiffeWorkloadAPIClient(conns[caller]))
	})
}

// asWorkload adds the header that the Workload API asks for.
func asWorkload(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// listEntries measures P7, five times over one filling with n entries.
func listEntries(n int) func(context.Context, *bench) (result, error) {
	const times = 5
	return func(ctx context.Context, b *bench) (result, error) {
		return onServer(ctx, b, func(p *pair, conns []*grpc.ClientConn) (result, error) {
			if err := createMany(ctx, p, conns, len(conns), n); err != nil {
				return nil, err
			}
			before, err := cpu(p.server.Process.Pid)
			if err != nil {
				return nil, err
			}
			var took []time.Duration
			for range times {
				start := time.Now()
				if err := listAll(ctx, p.admin, n); err != nil {
					return nil, err
				}
				took = append(took, time.Since(start))
			}
			after, err := cpu(p.server.Process.Pid)
			if err != nil {
				return nil, err
			}
			r := result{"cpu_us": rounded(float64((after - before).Microseconds()) / float64(n) / times)}
			r.latencies("list_", took)
			return r, nil
		})
	}
}
