package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
)

const loadFor = 5 * time.Second

// closedLoop runs do from callers goroutines for loadFor, after a warm-up, and
// says what it cost the process pid. items is how many SVIDs or entries one
// call makes.
func closedLoop(ctx context.Context, pid, callers, items int, do func(ctx context.Context, caller, i int) error) (result, error) {
	if _, _, err := loop(ctx, callers, loadFor/10, do); err != nil {
		return nil, err
	}
	before, err := cpu(pid)
	if err != nil {
		return nil, err
	}
	ls, took, err := loop(ctx, callers, loadFor, do)
	if err != nil {
		return nil, err
	}
	after, err := cpu(pid)
	if err != nil {
		return nil, err
	}
	n := float64(len(ls) * items)
	r := result{"callers": float64(callers), "per_s": rounded(n / took.Seconds()), "cpu_us": rounded(float64((after - before).Microseconds()) / n)}
	r.latencies("call_", ls)
	return r, nil
}

func loop(ctx context.Context, callers int, d time.Duration, do func(context.Context, int, int) error) ([]time.Duration, time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	group, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	for caller := range callers {
		group.Go(func() error {
			var ls []time.Duration
			for i := 0; time.Since(start) < d; i++ {
				t0 := time.Now()
				if err := do(ctx, caller, i); err != nil {
					return err
				}
				ls = append(ls, time.Since(t0))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, ls...)
			return nil
		})
	}
	err := group.Wait()
	return all, time.Since(start), err
}

// admins opens connections to the admin socket, as several clients have.
func (p *pair) admins(n int) ([]*grpc.ClientConn, func(), error) {
	var conns []*grpc.ClientConn
	closeAll := func() {
		for _, c := range conns {
			_ = c.Close() // the measurement is over
		}
	}
	for range n {
		c, err := dialUnix(p.path("server.sock"))
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		conns = append(conns, c)
	}
	return conns, closeAll, nil
}

// onServer runs a measurement of a server alone.
func onServer(ctx context.Context, b *bench, measure func(*pair, []*grpc.ClientConn) (result, error)) (r result, err error) {
	p, err := b.newPair(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.startServer(); err != nil {
		return nil, err
	}
	conns, done, err := p.admins(8)
	if err != nil {
		return nil, err
	}
	defer done()
	return measure(p, conns)
}

func mintX509(ctx context.Context, b *bench) (result, error) {
	pool := make([][]byte, 256)
	for i := range pool {
		var err error
		if pool[i], _, err = newCSR("spiffe://" + trustDomain + "/bench/" + strconv.Itoa(i)); err != nil {
			return nil, err
		}
	}
	return onServer(ctx, b, func(p *pair, conns []*grpc.ClientConn) (result, error) {
		return closedLoop(ctx, p.server.Process.Pid, 64, 1, func(ctx context.Context, caller, i int) error {
			_, err := svidv1.NewSVIDClient(conns[caller%len(conns)]).MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: pool[(caller*7+i)%len(pool)]})
			return err
		})
	})
}

func mintJWT(ctx context.Context, b *bench) (result, error) {
	return onServer(ctx, b, func(p *pair, conns []*grpc.ClientConn) (result, error) {
		req := &svidv1.MintJWTSVIDRequest{Id: &types.SPIFFEID{TrustDomain: trustDomain, Path: "/bench"}, Audience: []string{"bench"}}
		return closedLoop(ctx, p.server.Process.Pid, 64, 1, func(ctx context.Context, caller, _ int) error {
			_, err := svidv1.NewSVIDClient(conns[caller%len(conns)]).MintJWTSVID(ctx, req)
			return err
		})
	})
}

func batchX509(ctx context.Context, b *bench) (result, error) {
	const batch = 50
	return onServer(ctx, b, func(p *pair, _ []*grpc.ClientConn) (result, error) {
		conn, err := p.attest(ctx)
		if err != nil {
			return nil, err
		}
		defer conn.Close() //nolint:errcheck // the measurement is over
		if err := fill(ctx, p.admin, p.agentID, batch); err != nil {
			return nil, err
		}
		var mine *entryv1.GetAuthorizedEntriesResponse
		if err := until(ctx, func() (err error) { // SPIRE reads its store every 5 s
			mine, err = entryv1.NewEntryClient(conn).GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{OutputMask: &types.EntryMask{}})
			if err == nil && len(mine.GetEntries()) < batch {
				err = fmt.Errorf("%d entries of %d", len(mine.GetEntries()), batch)
			}
			return err
		}); err != nil {
			return nil, err
		}
		req := &svidv1.BatchNewX509SVIDRequest{}
		for _, e := range mine.GetEntries() {
			csr, _, err := newCSR("")
			if err != nil {
				return nil, err
			}
			req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: e.GetId(), Csr: csr})
		}
		return closedLoop(ctx, p.server.Process.Pid, 4, len(req.GetParams()), func(ctx context.Context, _, _ int) error {
			resp, err := svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, req)
			if err != nil {
				return err
			}
			for _, r := range resp.GetResults() {
				if codes.Code(r.GetStatus().GetCode()) != codes.OK {
					return errors.New(r.GetStatus().GetMessage())
				}
			}
			return nil
		})
	})
}

// attest makes this process an agent of the server.
func (p *pair) attest(ctx context.Context) (*grpc.ClientConn, error) {
	b, err := bundlev1.NewBundleClient(p.admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	bundle, err := bundleOf(b)
	if err != nil {
		return nil, err
	}
	token, err := p.token(ctx)
	if err != nil {
		return nil, err
	}
	csr, key, err := newCSR("")
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port))
	anonymous, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(tlsconfig.TLSClientConfig(bundle, tlsconfig.AuthorizeAny()))))
	if err != nil {
		return nil, err
	}
	defer anonymous.Close() //nolint:errcheck // it served its purpose
	stream, err := agentv1.NewAgentClient(anonymous).AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data: &types.AttestationData{Type: "join_token", Payload: []byte(token)}, Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}})
	if err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	svid, err := x509svid.ParseRaw(slices.Concat(resp.GetResult().GetSvid().GetCertChain()...), pkcs8(key))
	if err != nil {
		return nil, fmt.Errorf("reading the agent's SVID: %w", err)
	}
	p.agentID = svid.ID
	return grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeAny()))))
}

// createEntries measures P6: into an empty store, and at n entries.
func createEntries(n int) func(context.Context, *bench) (result, error) {
	at := fmt.Sprintf("at_%dk_", n/1000)
	steps := []struct {
		name       string
		callers, n int
	}{{"empty_alone_", 1, n / 5}, {"empty_8_callers_", 8, n / 5}, {"", 8, n - n/5*2}, {at + "alone_", 1, n / 5}, {at + "8_callers_", 8, n / 5}}
	return func(ctx context.Context, b *bench) (result, error) {
		return onServer(ctx, b, func(p *pair, conns []*grpc.ClientConn) (result, error) {
			r := result{}
			for _, step := range steps {
				if err := createStep(ctx, r, p, conns, step.name, step.callers, step.n); err != nil {
					return nil, err
				}
			}
			anon, err := anonMiB(p.server.Process.Pid)
			r["server_rss_anon_mib"] = anon
			return r, err
		})
	}
}

// createStep makes n entries and, if the step has a name, says what that took.
func createStep(ctx context.Context, r result, p *pair, conns []*grpc.ClientConn, name string, callers, n int) error {
	before, err := cpu(p.server.Process.Pid)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := createMany(ctx, p, conns, callers, n); err != nil {
		return err
	}
	took := time.Since(start)
	after, err := cpu(p.server.Process.Pid)
	if err == nil && name != "" {
		r[name+"per_s"] = rounded(float64(n) / took.Seconds())
		r[name+"server_cpu_us"] = rounded(float64((after - before).Microseconds()) / float64(n))
	}
	return err
}

func createMany(ctx context.Context, p *pair, conns []*grpc.ClientConn, callers, n int) error {
	var taken atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for caller := range callers {
		group.Go(func() error {
			for taken.Add(50) <= int64(n) {
				if _, err := create(ctx, conns[caller%len(conns)], batchOf(p.someAgent(caller), 50)...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
