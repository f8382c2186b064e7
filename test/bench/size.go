package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/test/bench/dataset"
	"github.com/credence-id/credence/test/bench/fleet"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
)

// idleServer measures P9: a server with 100,000 entries and nothing to do.
func idleServer(ctx context.Context, b *bench) (result, error) {
	spec := defaults()
	spec.entries, spec.idle = 100_000, cmp.Or(b.duration, time.Minute)
	return runFleet(ctx, b, spec)
}

// idleBytes measures P11: one agent with 10,000 entries.
func idleBytes(ctx context.Context, b *bench) (result, error) {
	spec := defaults()
	spec.agents, spec.entries, spec.idle = 1, 10_000, cmp.Or(b.duration, time.Minute)
	return runFleet(ctx, b, spec)
}

// growth measures the same at several sizes, in one server that is filled
// further.
func growth(ctx context.Context, b *bench) (r result, err error) {
	nodes, err := fleet.LoadNodes(b.scratch+"/nodes", 1)
	if err != nil {
		return nil, err
	}
	c, err := b.newCluster(ctx, clusterSpec{servers: 1, nodes: nodes, agentTTL: time.Hour})
	if err != nil {
		return nil, err
	}
	defer func() { err = firstOf(err, c.stop()) }()
	data := dataset.Spec{TrustDomain: td, Seed: 1, Aliases: nodes.Selectors(), Federates: []string{"one.test", "two.test"}}.Realistic()
	if err := dataset.SetBundles(ctx, c.admins()[0], data.Federates); err != nil {
		return nil, err
	}
	if _, err := dataset.Create(ctx, c.admins()[0], data.AliasEntries()...); err != nil {
		return nil, err
	}
	g := &growing{cluster: c, data: data, result: result{"seed": 1.0}}
	for _, n := range b.sizes {
		if err := g.at(ctx, n); err != nil {
			return nil, fmt.Errorf("at %d entries: %w", n, err)
		}
	}
	return g.result, nil
}

// growing is a server under growth.
type growing struct {
	*cluster
	data   dataset.Spec
	have   int
	prefix string
	result result
}

func (g *growing) set(name string, value float64) { g.result[g.prefix+name] = value }

// at brings the server to n entries and measures P6, P7, P8, P12 and P3.
func (g *growing) at(ctx context.Context, n int) error {
	g.prefix = fmt.Sprintf("at_%07d_", n)
	const tail = 5000 // entries for P6 alone
	if err := g.create(ctx, n-tail, "p6_8_callers_", g.admins()); err != nil {
		return err
	}
	if err := g.create(ctx, n, "p6_alone_", g.admins()[:1]); err != nil {
		return err
	}
	m := g.members[0]
	anon, err := anonMiB(m.pid())
	if err != nil {
		return err
	}
	g.set("p8_after_load_mib", anon)
	if err := g.list(ctx); err != nil {
		return err
	}
	if err := g.mint(ctx); err != nil {
		return err
	}
	return g.restart(ctx)
}

// create brings the server to n entries.
func (g *growing) create(ctx context.Context, n int, name string, conns []grpc.ClientConnInterface) error {
	from := g.have
	if n <= from {
		return nil
	}
	before, err := g.cpu()
	if err != nil {
		return err
	}
	took, err := dataset.Fill(ctx, conns, g.data.Range(from, n))
	if err != nil {
		return err
	}
	after, err := g.cpu()
	g.have = n
	g.set(name+"per_s", rounded(float64(n-from)/took.Seconds()))
	g.set(name+"cpu_us", rounded(float64((after-before).Microseconds())/float64(n-from)))
	return err
}

func (g *growing) list(ctx context.Context) error {
	before, err := g.cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := listAll(ctx, g.members[0].admins[0], g.have); err != nil {
		return err
	}
	took := time.Since(start)
	after, err := g.cpu()
	g.set("p7_list_ms", ms(took))
	g.set("p7_cpu_us_per_entry", rounded(float64((after-before).Microseconds())/float64(g.have)))
	return err
}

// mint measures P3.
func (g *growing) mint(ctx context.Context) error {
	csr, _, err := newCSR("spiffe://" + trustDomain + "/bench")
	if err != nil {
		return err
	}
	conns := g.members[0].admins
	r, err := closedLoop(ctx, g.members[0].pid(), 16, 1, func(ctx context.Context, caller, _ int) error {
		_, err := svidv1.NewSVIDClient(conns[caller%len(conns)]).MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr})
		return err
	})
	if err != nil {
		return err
	}
	us, _ := r["cpu_us"].(float64)
	g.set("p3_cpu_us", us)
	return nil
}

// restart measures P12, and P8 as it is after a restart.
func (g *growing) restart(ctx context.Context) error {
	m := g.members[0]
	if err := end(m.cmd); err != nil {
		return err
	}
	start := time.Now()
	if err := g.begin(ctx, m); err != nil {
		return err
	}
	g.set("p12_bundle_ms", ms(time.Since(start)))
	client := entryv1.NewEntryClient(m.admins[0])
	var counted *entryv1.CountEntriesResponse
	err := until(ctx, func() (err error) {
		counted, err = client.CountEntries(ctx, &entryv1.CountEntriesRequest{}, grpc.WaitForReady(false))
		return err
	})
	g.set("p12_count_ms", ms(time.Since(start)))
	if err != nil {
		return err
	}
	if int(counted.GetCount()) < g.have {
		return fmt.Errorf("%d entries after the restart, want %d", counted.GetCount(), g.have)
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	anon, err := anonMiB(m.pid())
	if err != nil {
		return err
	}
	live, err := m.live(ctx)
	g.set("p8_restarted_mib", anon)
	g.set("p8_live_mib", mib(live.heap+live.stack))
	return err
}

func mib(bytes float64) float64 { return rounded(bytes / (1 << 20)) }

// live is what the server's objects and stacks take, after a collection of
// garbage: what it needs, whatever Go's collector lets it keep.
func (m *member) live(ctx context.Context) (memory, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/heap?gc=1&debug=1", m.profiling), nil)
	if err != nil {
		return memory{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return memory{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	out, found := memory{}, 0
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		for name, to := range map[string]*float64{"# HeapAlloc = ": &out.heap, "# Stack = ": &out.stack} {
			rest, ok := strings.CutPrefix(lines.Text(), name)
			if !ok {
				continue
			}
			found++
			// Stack is "in use / of the system".
			if *to, err = strconv.ParseFloat(strings.Fields(rest)[0], 64); err != nil {
				return memory{}, err
			}
		}
	}
	if found != 2 {
		return memory{}, errors.New("the server's heap profile has no statistics")
	}
	return out, lines.Err()
}
