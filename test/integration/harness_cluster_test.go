package integration

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// Times of a trio: short, so that its stories are.
const (
	trioStaleness = 6 * time.Second
	trioRequest   = 3 * time.Second
	trioLease     = 3 * time.Second
)

// trio is three servers over three members of etcd, each by a way of its own, and
// somebody who never stops changing entries.
type trio struct {
	*world
	etcd    *etcdtest.Cluster
	links   []*etcdtest.Link
	servers []*server
	metrics []int // ports
	nomads  []*nomad

	writing sync.Mutex // held by who writes, and by who wants quiet

	mu sync.Mutex
	// guarded by mu:
	entries map[string]*fact
}

// writerPrefix is of the IDs of the entries that are changed all the time.
const writerPrefix = "e-"

// fact is what is known of one entry.
type fact struct {
	// parent is that of the newest state that was acknowledged; "" when it was
	// deleted.
	parent string
	// versions are the parents that an acknowledged revision number had.
	versions map[int64]string
	// unsure: a request got no answer, and may have been carried out.
	unsure bool
}

func newTrio(t *testing.T, name string) *trio {
	t.Helper()
	w := newWorld(t, name)
	c := &trio{world: w, etcd: etcdtest.NewCluster(t, 3), entries: make(map[string]*fact)}
	for i := range 3 {
		link, port := c.etcd.Link(), freePort(t)
		var quoted []string
		for _, e := range link.Endpoints() {
			quoted = append(quoted, fmt.Sprintf("%q", e))
		}
		s := w.newServer(serverOptions{
			name:     fmt.Sprint("s", i),
			settings: fmt.Sprintf("\tmax_staleness = %q\n", trioStaleness),
			plugins: fmt.Sprintf("\tDataStore \"etcd\" { plugin_data { endpoints = [%s] request_timeout = %q lock_ttl = %q } }\n",
				strings.Join(quoted, ", "), trioRequest, trioLease),
			more: fmt.Sprintf(`telemetry { Prometheus { host = "127.0.0.1" port = %d } }`, port),
		})
		c.links, c.servers, c.metrics = append(c.links, link), append(c.servers, s), append(c.metrics, port)
		s.run()
	}
	for _, s := range c.servers {
		healthy(t, s.proc, s.conn)
	}
	return c
}

// settle makes n agents in two groups, which follow the feeds until ctx ends.
func (c *trio) settle(ctx context.Context, following *sync.WaitGroup, n int) {
	c.t.Helper()
	for i := range n {
		a := newNomad(c.t, c.servers[i%3], c.servers, fmt.Sprint("agent ", i), fmt.Sprint("/group/", i%2))
		a.seen = c.saw
		c.nomads = append(c.nomads, a)
		following.Go(func() { a.follow(ctx, i) })
	}
}

// saw checks an entry that an agent was given against what was acknowledged.
func (c *trio) saw(e *types.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.entries[e.GetId()]
	if f == nil {
		return // Its creation is not acknowledged yet, or it is an alias.
	}
	if parent, known := f.versions[e.GetRevisionNumber()]; known && parent != e.GetParentId().GetPath() {
		c.t.Errorf("revision %d of entry %s was delivered as one of %s, it is of %s", e.GetRevisionNumber(), e.GetId(), e.GetParentId().GetPath(), parent)
	}
}

// write changes entries at any of the servers until ctx ends.
func (c *trio) write(ctx context.Context, r *rand.Rand) {
	for i := 0; ctx.Err() == nil; i++ {
		c.writing.Lock()
		c.change(ctx, r, i)
		c.writing.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// change makes, moves or deletes an entry.
func (c *trio) change(ctx context.Context, r *rand.Rand, i int) {
	a := c.nomads[r.IntN(len(c.nomads))]
	parent := a.parents[r.IntN(len(a.parents))]
	c.mu.Lock()
	ids := slices.Sorted(maps.Keys(c.entries))
	c.mu.Unlock()
	client := c.servers[r.IntN(3)].entries()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	kind := r.IntN(4)
	if len(ids) < 20 || kind < 2 {
		id := fmt.Sprint(writerPrefix, i)
		e := &types.Entry{Id: id, SpiffeId: apiID(c.id("/w/" + id)), ParentId: apiID(c.id(parent)), Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}}
		resp, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
		c.note(id, parent, err, first(resp.GetResults()).GetStatus(), first(resp.GetResults()).GetEntry())
		return
	}
	id := ids[r.IntN(len(ids))]
	if kind == 2 {
		resp, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
			Entries:   []*types.Entry{{Id: id, ParentId: apiID(c.id(parent))}},
			InputMask: &types.EntryMask{ParentId: true},
		})
		c.note(id, parent, err, first(resp.GetResults()).GetStatus(), first(resp.GetResults()).GetEntry())
		return
	}
	resp, err := client.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{id}})
	c.note(id, "", err, first(resp.GetResults()).GetStatus(), nil)
}

func first[T any](list []*T) *T {
	if len(list) == 0 {
		return nil
	}
	return list[0]
}

// note remembers what came of a change.
func (c *trio) note(id, parent string, err error, s *types.Status, e *types.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.entries[id]
	if f == nil {
		f = &fact{versions: make(map[int64]string)}
		c.entries[id] = f
	}
	switch code := codes.Code(s.GetCode()); {
	case err != nil, code == codes.Unavailable, code == codes.DeadlineExceeded, code == codes.Canceled, code == codes.Internal:
		f.unsure = true
	case code == codes.NotFound || code == codes.AlreadyExists:
		// It was deleted before, or a request that got no answer made it.
	case code != codes.OK:
		c.t.Errorf("changing entry %s: %v: %s", id, code, s.GetMessage())
	default:
		f.parent = parent
		if e != nil {
			f.versions[e.GetRevisionNumber()] = parent
		}
	}
}

// converge stops the writing and holds every server and every agent against what
// was acknowledged.
func (c *trio) converge(after string) {
	c.t.Helper()
	c.writing.Lock()
	defer c.writing.Unlock()
	var listed map[string]*types.Entry
	for i, s := range c.servers {
		eventually(c.t, after+": server "+fmt.Sprint(i)+" is healthy", func() error { return checkHealth(c.t, healthOf(s)) })
		here := c.served(s)
		if listed != nil {
			if diff := cmp.Diff(paths(listed), paths(here)); diff != "" {
				c.t.Errorf("%s: server %d lists other entries (-first +this):\n%s", after, i, diff)
			}
		}
		listed = here
	}
	c.check(after, listed)
	for _, a := range c.nomads {
		if a.wasRefused() != nil {
			continue
		}
		want := make(map[string]int64)
		for id, e := range listed {
			if slices.Contains(a.parents, e.GetParentId().GetPath()) {
				want[id] = e.GetRevisionNumber()
			}
		}
		eventually(c.t, after+": "+a.name+" has what it may have", func() error {
			if diff := cmp.Diff(want, a.holds()); diff != "" {
				return fmt.Errorf("connected to %d (-want +got): %s", a.connected(), diff)
			}
			return nil
		})
	}
}

// served lists the entries of a server, without the aliases of tokens.
func (c *trio) served(s *server) map[string]*types.Entry {
	all := s.allEntries()
	maps.DeleteFunc(all, func(id string, _ *types.Entry) bool { return !strings.HasPrefix(id, writerPrefix) })
	return all
}

func paths(entries map[string]*types.Entry) map[string]string {
	out := make(map[string]string)
	for id, e := range entries {
		out[id] = fmt.Sprint(e.GetParentId().GetPath(), " ", e.GetRevisionNumber())
	}
	return out
}

// check holds what is listed against what was acknowledged: nothing of that is
// lost. What got no answer is as it is.
func (c *trio) check(after string, listed map[string]*types.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, f := range c.entries {
		e := listed[id]
		switch {
		case f.unsure:
		case f.parent == "" && e != nil:
			c.t.Errorf("%s: entry %s was deleted and is there", after, id)
		case f.parent != "" && e == nil:
			c.t.Errorf("%s: entry %s was acknowledged and is lost", after, id)
		case f.parent != "" && e.GetParentId().GetPath() != f.parent:
			c.t.Errorf("%s: entry %s is of %s, acknowledged was %s", after, id, e.GetParentId().GetPath(), f.parent)
		}
		f.unsure, f.parent = false, e.GetParentId().GetPath()
	}
	for id := range listed {
		if c.entries[id] == nil {
			c.t.Errorf("%s: entry %s is of nobody", after, id)
		}
	}
}
