package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
)

func pkcs8(key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err) // a key this program made
	}
	return der
}

// someAgent is a parent that need not exist.
func (p *pair) someAgent(i int) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(trustDomain), fmt.Sprintf("/spire/agent/bench/%d", i))
}

// coldServer measures P12: from exec to the first answer, each on a connection
// of its own, tried every millisecond.
func coldServer(ctx context.Context, b *bench) (result, error) {
	csr, _, err := newCSR("spiffe://" + trustDomain + "/bench")
	if err != nil {
		return nil, err
	}
	mint := func(conn *grpc.ClientConn) error {
		_, err := svidv1.NewSVIDClient(conn).MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr}, grpc.WaitForReady(false))
		return err
	}
	return onServer(ctx, b, func(p *pair, conns []*grpc.ClientConn) (result, error) {
		r := result{}
		restart := func(name string, work func(*grpc.ClientConn) error) error {
			if err := end(p.server); err != nil {
				return err
			}
			start := time.Now()
			if err := p.startServer(); err != nil {
				return err
			}
			err := until(ctx, func() error { return p.fresh(work) })
			r[name+"_ms"] = ms(time.Since(start))
			return err
		}
		if err := until(ctx, func() error { return p.fresh(mint) }); err != nil {
			return nil, err
		}
		if err := restart("empty_mint", mint); err != nil {
			return nil, err
		}
		if err := createMany(ctx, p, conns, 8, 100_000); err != nil {
			return nil, err
		}
		if err := restart("at_100k_mint", mint); err != nil {
			return nil, err
		}
		list := func(conn *grpc.ClientConn) error { return listAll(ctx, conn, 100_000) }
		if err := restart("at_100k_list", list); err != nil {
			return nil, err
		}
		return r, p.coldEntry(ctx, r, restart)
	})
}

// coldEntry measures BatchNewX509SVID for an entry after a restart: as an agent
// that was there before. The server's keys are in memory, so the agent trusts
// what the restarted one says over the admin socket.
func (p *pair) coldEntry(ctx context.Context, r result, restart func(string, func(*grpc.ClientConn) error) error) error {
	count := func(conn *grpc.ClientConn) error {
		_, err := entryv1.NewEntryClient(conn).CountEntries(ctx, &entryv1.CountEntriesRequest{}, grpc.WaitForReady(false))
		return err
	}
	// Entitlement and counting wait for the same index.
	if err := restart("at_100k_count", count); err != nil {
		return err
	}
	conn, err := p.attest(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the measurement is over
	ids, err := create(ctx, p.admin, batchOf(p.agentID, 1)...)
	if err != nil {
		return err
	}
	csr, _, err := newCSR("")
	if err != nil {
		return err
	}
	start := time.Now()
	_, err = svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: ids[0], Csr: csr}}})
	r["first_batch_call_ms"] = ms(time.Since(start))
	return err
}

// fresh runs work on a new connection to the admin socket.
func (p *pair) fresh(work func(*grpc.ClientConn) error) error {
	if _, err := os.Stat(p.path("server.sock")); err != nil {
		return err
	}
	conn, err := dialUnix(p.path("server.sock"))
	if err != nil {
		return err
	}
	return errors.Join(work(conn), conn.Close())
}

func listAll(ctx context.Context, conn grpc.ClientConnInterface, want int) error {
	n := 0
	for token := ""; ; {
		page, err := entryv1.NewEntryClient(conn).ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: 1000, PageToken: token}, grpc.WaitForReady(false))
		if err != nil {
			return err
		}
		n += len(page.GetEntries())
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if n < want {
		return fmt.Errorf("%d entries listed, want %d", n, want)
	}
	return nil
}

// coldAgent measures P13: from exec, with attestation, to a workload's SVID.
func coldAgent(ctx context.Context, b *bench) (r result, err error) {
	p, err := b.newPair(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.join(ctx); err != nil {
		return nil, err
	}
	var took []time.Duration
	for range 10 {
		if err := end(p.agent); err != nil {
			return nil, err
		}
		token, err := p.token(ctx)
		if err != nil {
			return nil, err
		}
		parent := spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(trustDomain), "/spire/agent/join_token/"+token)
		if _, err := create(ctx, p.admin, entryOf(parent, "/bench/cold", fmt.Sprintf("unix:uid:%d", os.Getuid()))); err != nil {
			return nil, err
		}
		start := time.Now()
		if p.agent, err = p.start(p.b.agent, "agent.log", "run", "-config", p.path("agent.conf"), "-joinToken", token); err != nil {
			return nil, err
		}
		if err := until(ctx, func() error { return p.askAgent(ctx) }); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	r = result{}
	r.latencies("first_svid_", took)
	return r, nil
}

func (p *pair) askAgent(ctx context.Context) error {
	if _, err := os.Stat(p.path("agent.sock")); err != nil {
		return err
	}
	conn, err := dialUnix(p.path("agent.sock"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_, _, err = firstX509(ctx, conn)
	return errors.Join(err, conn.Close())
}

// idle measures P18 and P19.
func idle(ctx context.Context, b *bench) (r result, err error) {
	p, err := b.newPair(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.join(ctx); err != nil {
		return nil, err
	}
	if _, err := create(ctx, p.admin, entryOf(p.agentID, "/bench/idle", fmt.Sprintf("unix:uid:%d", os.Getuid()))); err != nil {
		return nil, err
	}
	if err := until(ctx, func() error { return p.askAgent(ctx) }); err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second) // at rest
	r = result{}
	if r["server_rss_anon_mib"], err = anonMiB(p.server.Process.Pid); err != nil {
		return nil, err
	}
	if r["agent_rss_anon_mib"], err = anonMiB(p.agent.Process.Pid); err != nil {
		return nil, err
	}
	for key, path := range map[string]string{"server_binary_mb": b.server, "agent_binary_mb": b.agent} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		r[key] = rounded(float64(info.Size()) / 1e6)
	}
	return r, nil
}
