package feedapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/server/apitest"
)

// mirror is what an agent holds, kept by the rules of feed.proto alone.
type mirror struct {
	mu sync.Mutex
	// guarded by mu:
	entries  map[string]uint64
	bundles  map[string]uint64
	storeID  string
	revision uint64
	synced   int
	sums     [feedv1.Buckets]uint64
	// stale are entries of resynced buckets that were not sent again yet.
	stale map[string]struct{}
}

func newMirror() *mirror {
	return &mirror{entries: map[string]uint64{}, bundles: map[string]uint64{}, stale: map[string]struct{}{}}
}

func (m *mirror) open() *feedv1.Open {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stale = map[string]struct{}{} // A resync that was cut off changed nothing.
	o := &feedv1.Open{StoreId: m.storeID, Revision: m.revision}
	if len(m.entries) > 0 {
		o.Buckets = m.sums[:]
	}
	for td, rev := range m.bundles {
		o.Bundles = append(o.Bundles, &feedv1.BundleVersion{TrustDomain: td, Revision: rev})
	}
	return o
}

func (m *mirror) set(id string, rev uint64) {
	m.remove(id)
	m.entries[id] = rev
	m.sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, rev)
}

func (m *mirror) remove(id string) {
	if rev, ok := m.entries[id]; ok {
		m.sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, rev)
		delete(m.entries, id)
	}
}

func (m *mirror) apply(d *feedv1.Delta) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var resync [feedv1.Buckets]bool
	for _, b := range d.GetResync() {
		resync[b] = true
	}
	for id := range m.entries {
		if len(d.GetResync()) > 0 && resync[feedv1.Bucket(id)] {
			m.stale[id] = struct{}{}
		}
	}
	for _, u := range d.GetUpserts() {
		m.set(u.GetEntry().GetId(), u.GetRevision())
		delete(m.stale, u.GetEntry().GetId())
	}
	for _, id := range d.GetRemoves() {
		m.remove(id)
	}
	for _, b := range d.GetBundles() {
		m.bundles[b.GetBundle().GetTrustDomain()] = b.GetRevision()
	}
	for _, td := range d.GetRemovedBundles() {
		delete(m.bundles, td)
	}
	if !d.GetMore() && len(d.GetResync()) == 0 && len(m.stale) == 0 {
		m.revision = d.GetRevision()
	}
}

var errDiverged = errors.New("digest differs")

func (m *mirror) finish(s *feedv1.Synced) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.stale {
		m.remove(id)
	}
	m.stale = map[string]struct{}{}
	m.storeID, m.revision = s.GetStoreId(), s.GetRevision()
	m.synced++
	if !bytes.Equal(s.GetDigest(), feedv1.Digest(&m.sums)) {
		return errDiverged
	}
	return nil
}

// holds returns copies.
func (m *mirror) holds() (entries, bundles map[string]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.entries), maps.Clone(m.bundles)
}

// step takes one message and acknowledges it.
func (m *mirror) step(s feedv1.Feed_WatchClient) error {
	resp, err := s.Recv()
	if err != nil {
		return err
	}
	switch step := resp.GetStep().(type) {
	case *feedv1.WatchResponse_Delta:
		m.apply(step.Delta)
		if step.Delta.GetMore() {
			return nil
		}
		return sendAck(s, step.Delta.GetRevision())
	case *feedv1.WatchResponse_Synced:
		if err := m.finish(step.Synced); err != nil {
			return err
		}
		return sendAck(s, step.Synced.GetRevision())
	}
	return fmt.Errorf("unknown step %T", resp.GetStep())
}

// sendAck leaves the end of the stream to be told by Recv.
func sendAck(s feedv1.Feed_WatchClient, rev uint64) error {
	if err := s.Send(ack(rev)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func ack(rev uint64) *feedv1.WatchRequest {
	return &feedv1.WatchRequest{Step: &feedv1.WatchRequest_Ack{Ack: &feedv1.Ack{Revision: rev}}}
}

// watch opens a stream with what the mirror holds.
func watch(ctx context.Context, tb testing.TB, conn grpc.ClientConnInterface, m *mirror) feedv1.Feed_WatchClient {
	tb.Helper()
	return watchWith(ctx, tb, conn, m.open())
}

func watchWith(ctx context.Context, tb testing.TB, conn grpc.ClientConnInterface, open *feedv1.Open) feedv1.Feed_WatchClient {
	tb.Helper()
	s, err := feedv1.NewFeedClient(conn).Watch(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	err = s.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: open}})
	if err != nil && !errors.Is(err, io.EOF) { // A stream that has ended says why to who receives.
		tb.Fatal(err)
	}
	return s
}

// until steps until the condition holds.
func until(tb testing.TB, s feedv1.Feed_WatchClient, m *mirror, done func() bool) {
	tb.Helper()
	for !done() {
		if err := m.step(s); err != nil {
			tb.Fatal(err)
		}
	}
}

func (m *mirror) isSynced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.synced > 0
}

// wantOf is what the graph and the index say an agent is to hold.
func wantOf(w *apitest.World, snap entitle.Snapshot) (entries, bundles map[string]uint64) {
	entries, bundles = map[string]uint64{}, map[string]uint64{}
	domains := []spiffeid.TrustDomain{w.TrustDomain}
	for _, e := range snap.Entries {
		entries[e.ID()] = uint64(e.ModRevision())
		domains = append(domains, e.FederatesWith()...)
	}
	for _, td := range domains {
		if b, ok := w.Index.Bundle(td); ok {
			bundles[td.Name()] = uint64(b.ModRevision)
		}
	}
	return entries, bundles
}

func reason(err error) types.PermissionDeniedDetails_Reason {
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*types.PermissionDeniedDetails); ok {
			return p.GetReason()
		}
	}
	return types.PermissionDeniedDetails_UNKNOWN
}

func TestWatch(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	first := w.Create(t, w.Entry(t, agent.ID, "/first"))[0]

	m := newMirror()
	s := watch(t.Context(), t, w.Dial(t, &agent.Cert), m)
	until(t, s, m, m.isSynced)
	snap := w.Graph.Snapshot(agent.ID, time.Now())
	wantEntries, wantBundles := wantOf(w, snap)
	gotEntries, gotBundles := m.holds()
	if diff := cmp.Diff(wantEntries, gotEntries); diff != "" {
		t.Errorf("entries after Open (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantBundles, gotBundles); diff != "" {
		t.Errorf("bundles after Open (-want +got):\n%s", diff)
	}

	second := w.Create(t, w.Entry(t, first.SPIFFEID, "/second"))[0]
	until(t, s, m, func() bool { _, ok := m.entries[second.ID]; return ok })
	for _, err := range w.Registry.DeleteEntries(t.Context(), []string{first.ID}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	until(t, s, m, func() bool { return len(m.entries) == 0 })

	states := w.Hub.Agents()
	if len(states) != 1 || states[0].ID != agent.ID || !states[0].Synced {
		t.Errorf("Agents() = %+v, want the one that watches, synced", states)
	}
}

// TestWatchNothingDiffers: an agent that holds everything gets Synced alone.
func TestWatchNothingDiffers(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	w.Create(t, w.Entry(t, agent.ID, "/a"), w.Entry(t, agent.ID, "/b"))
	m := newMirror()
	conn := w.Dial(t, &agent.Cert)
	until(t, watch(t.Context(), t, conn, m), m, m.isSynced)

	s := watch(t.Context(), t, conn, m)
	resp, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetSynced() == nil {
		t.Errorf("first message after reconnect: %v, want Synced", resp)
	}
}

func TestWatchNewestWins(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	conn := w.Dial(t, &agent.Cert)
	older, newer := newMirror(), newMirror()
	olderStream := watch(t.Context(), t, conn, older)
	until(t, olderStream, older, older.isSynced)
	newerStream := watch(t.Context(), t, w.Dial(t, &agent.Cert), newer)
	until(t, newerStream, newer, newer.isSynced)

	if err := older.step(olderStream); status.Code(err) != codes.Aborted {
		t.Errorf("older stream: %v, want Aborted", err)
	}
	e := w.Create(t, w.Entry(t, agent.ID, "/a"))[0]
	until(t, newerStream, newer, func() bool { _, ok := newer.entries[e.ID]; return ok })
}

func TestWatchRefusesMalformedOpen(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	conn := w.Dial(t, &w.NewAgent(t, "one").Cert)
	for name, req := range map[string]*feedv1.WatchRequest{
		"nothing":          {},
		"ack first":        ack(1),
		"255 buckets":      {Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{Buckets: make([]uint64, 255)}}},
		"257 buckets":      {Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{Buckets: make([]uint64, 257)}}},
		"long version":     {Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{AgentVersion: string(make([]byte, 256))}}},
		"not a domain":     {Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{Bundles: []*feedv1.BundleVersion{{TrustDomain: "a b"}}}}},
		"too many bundles": {Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{Bundles: make([]*feedv1.BundleVersion, 5000)}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := range req.GetOpen().GetBundles() {
				if req.GetOpen().Bundles[i] == nil {
					req.GetOpen().Bundles[i] = &feedv1.BundleVersion{TrustDomain: "a"}
				}
			}
			s, err := feedv1.NewFeedClient(conn).Watch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(req); err != nil {
				t.Fatal(err)
			}
			_, err = s.Recv()
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("Recv: %v, want InvalidArgument", err)
			}
		})
	}
}

// TestWatchSecondOpen: only acks may follow.
func TestWatchSecondOpen(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	m := newMirror()
	s := watch(t.Context(), t, w.Dial(t, &w.NewAgent(t, "one").Cert), m)
	until(t, s, m, m.isSynced)
	if err := s.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: m.open()}}); err != nil {
		t.Fatal(err)
	}
	if err := m.step(s); status.Code(err) != codes.InvalidArgument {
		t.Errorf("after a second Open: %v, want InvalidArgument", err)
	}
}

// TestWatchFederation: a bundle comes with the first entry that needs it, and
// goes with the last.
func TestWatchFederation(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	other := spiffeid.RequireTrustDomainFromString("other.test")
	setBundle := func(hint time.Duration) {
		t.Helper()
		_, err := w.Registry.UpdateBundle(t.Context(), other, func(b *registry.Bundle) error {
			b.RefreshHint = hint
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		w.Fresh(t)
	}
	setBundle(time.Minute)
	m := newMirror()
	s := watch(t.Context(), t, w.Dial(t, &agent.Cert), m)
	until(t, s, m, m.isSynced)
	if _, ok := m.bundles["other.test"]; ok {
		t.Fatal("the agent has a bundle that no entry needs")
	}

	federated := w.Entry(t, agent.ID, "/a")
	federated.FederatesWith = []spiffeid.TrustDomain{other}
	twin := w.Entry(t, agent.ID, "/b")
	twin.FederatesWith = federated.FederatesWith
	made := w.Create(t, federated, twin)
	until(t, s, m, func() bool { return len(m.entries) == 2 })
	had, ok := m.bundles["other.test"]
	if !ok {
		t.Fatal("the entry came without its bundle")
	}
	setBundle(time.Hour)
	until(t, s, m, func() bool { return m.bundles["other.test"] > had })

	// One entry lets go, then the other is removed.
	for _, r := range w.Registry.UpdateEntries(t.Context(), []registry.EntryUpdate{{ID: made[0].ID, Change: func(e *registry.Entry) error {
		e.FederatesWith = nil
		return nil
	}}}) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	until(t, s, m, func() bool { return m.entries[made[0].ID] > uint64(made[0].ModRevision) })
	if _, ok := m.bundles["other.test"]; !ok {
		t.Fatal("the bundle is gone while an entry needs it")
	}
	for _, err := range w.Registry.DeleteEntries(t.Context(), []string{made[1].ID}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	until(t, s, m, func() bool { _, ok := m.bundles["other.test"]; return !ok })
}

// TestS18_BanEndsStream: a ban or eviction ends the stream at once, and whatever
// the client does with it, nothing more comes.
func TestS18_BanEndsStream(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	for name, c := range map[string]struct {
		end  func(context.Context, spiffeid.ID) error
		want types.PermissionDeniedDetails_Reason
	}{
		"ban":   {w.Registry.BanAgent, types.PermissionDeniedDetails_AGENT_BANNED},
		"evict": {w.Registry.DeleteAgent, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			agent := w.NewAgent(t, name)
			conn := w.Dial(t, &agent.Cert)
			m := newMirror()
			s := watch(t.Context(), t, conn, m)
			until(t, s, m, m.isSynced)

			begin := time.Now()
			if err := c.end(t.Context(), agent.ID); err != nil {
				t.Fatal(err)
			}
			w.Create(t, w.Entry(t, agent.ID, "/secret-"+name))
			err := m.step(s)
			if status.Code(err) != codes.PermissionDenied || reason(err) != c.want {
				t.Errorf("stream ended with %v (%v), want PermissionDenied (%v)", err, reason(err), c.want)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("the stream ended after %s, want within 1s", took)
			}
			// The connection is still there; it is worth nothing.
			again := watch(t.Context(), t, conn, newMirror())
			if _, err := again.Recv(); status.Code(err) != codes.PermissionDenied || reason(err) != c.want {
				t.Errorf("new stream on the old connection: %v (%v), want PermissionDenied (%v)", err, reason(err), c.want)
			}
			if len(m.entries) != 0 {
				t.Errorf("the agent got %v after its end", m.entries)
			}
		})
	}
}

// overWire is what the agent's side makes of a Delta.
func overWire(d *feedv1.Delta) (*feedv1.Delta, error) {
	raw, err := proto.Marshal(d)
	if err != nil {
		return nil, err
	}
	out := &feedv1.Delta{}
	return out, proto.Unmarshal(raw, out)
}
