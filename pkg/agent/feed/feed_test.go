package feed

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/google/go-cmp/cmp"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// journal is a Cache that writes down what it is told.
type journal struct {
	deltas  []*feedv1.Delta
	synced  []uint64
	diverge bool
	entries map[string]uint64
}

func (j *journal) Open() *feedv1.Open { return &feedv1.Open{StoreId: "held", Revision: 7} }

func (j *journal) Apply(d *feedv1.Delta) error {
	j.deltas = append(j.deltas, d)
	if j.entries == nil {
		j.entries = map[string]uint64{}
	}
	if len(d.GetResync()) == feedv1.Buckets {
		clear(j.entries)
	}
	for _, e := range d.GetUpserts() {
		j.entries[e.GetEntry().GetId()] = uint64(e.GetEntry().GetRevisionNumber())
	}
	for _, id := range d.GetRemoves() {
		delete(j.entries, id)
	}
	return nil
}

func (j *journal) Synced(s *feedv1.Synced) error {
	j.synced = append(j.synced, s.GetRevision())
	if j.diverge {
		return ErrDiverged
	}
	return nil
}

// serve runs the registered services over bufconn and returns a connection.
func serve(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	register(server)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return conn
}

// script is a Feed server that sends steps and then ends with err.
type script struct {
	feedv1.UnimplementedFeedServer
	steps []*feedv1.WatchResponse
	acks  int
	err   error

	open *feedv1.Open
	got  []uint64
}

func (s *script) Watch(stream grpc.BidiStreamingServer[feedv1.WatchRequest, feedv1.WatchResponse]) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	s.open = req.GetOpen()
	for _, step := range s.steps {
		if err := stream.Send(step); err != nil {
			return err
		}
	}
	for range s.acks {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		s.got = append(s.got, req.GetAck().GetRevision())
	}
	return s.err
}

func delta(d *feedv1.Delta) *feedv1.WatchResponse {
	return &feedv1.WatchResponse{Step: &feedv1.WatchResponse_Delta{Delta: d}}
}

func synced(revision uint64) *feedv1.WatchResponse {
	return &feedv1.WatchResponse{Step: &feedv1.WatchResponse_Synced{Synced: &feedv1.Synced{Revision: revision}}}
}

func TestFollowAppliesInOrderAndAcknowledges(t *testing.T) {
	t.Parallel()
	banned := status.Error(codes.PermissionDenied, "banned")
	s := &script{err: banned, acks: 3, steps: []*feedv1.WatchResponse{
		delta(&feedv1.Delta{Revision: 10, Resync: []uint32{1}, More: true}),
		delta(&feedv1.Delta{Revision: 10, Resync: []uint32{2}}), // Synced follows
		synced(10),
		delta(&feedv1.Delta{Revision: 11, More: true}),
		delta(&feedv1.Delta{Revision: 11}),
		delta(&feedv1.Delta{Revision: 12}),
	}}
	conn := serve(t, func(g *grpc.Server) { feedv1.RegisterFeedServer(g, s) })
	j := new(journal)
	calls := 0
	err := Follow(t.Context(), Config{Conn: conn, Cache: j, Version: "v1", OnSynced: func() { calls++ }})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("ended with %v, want the server's PermissionDenied", err)
	}
	var revisions []uint64
	for _, d := range j.deltas {
		revisions = append(revisions, d.GetRevision())
	}
	if diff := cmp.Diff([]uint64{10, 10, 11, 11, 12}, revisions); diff != "" {
		t.Errorf("deltas applied: %s", diff)
	}
	if diff := cmp.Diff([]uint64{10, 11, 12}, s.got); diff != "" {
		t.Errorf("acknowledged: %s", diff)
	}
	if s.open.GetStoreId() != "held" || s.open.GetAgentVersion() != "v1" || calls != 1 {
		t.Errorf("open %v, OnSynced called %d times", s.open, calls)
	}
}

func TestFollowEndsOnDivergence(t *testing.T) {
	t.Parallel()
	s := &script{acks: 1, steps: []*feedv1.WatchResponse{synced(3)}}
	conn := serve(t, func(g *grpc.Server) { feedv1.RegisterFeedServer(g, s) })
	called := false
	err := Follow(t.Context(), Config{Conn: conn, Cache: &journal{diverge: true}, OnSynced: func() { called = true }})
	if !errors.Is(err, ErrDiverged) || called {
		t.Errorf("ended with %v, OnSynced called: %v; want ErrDiverged and not called", err, called)
	}
}

func TestFollowRefusesUnknownStep(t *testing.T) {
	t.Parallel()
	s := &script{acks: 1, steps: []*feedv1.WatchResponse{{}}}
	conn := serve(t, func(g *grpc.Server) { feedv1.RegisterFeedServer(g, s) })
	if err := Follow(t.Context(), Config{Conn: conn, Cache: new(journal)}); err == nil || status.Code(err) == codes.Unavailable {
		t.Errorf("ended with %v, want a refusal of the unknown step", err)
	}
}

func TestFollowOnServerWithoutFeed(t *testing.T) {
	t.Parallel()
	conn := serve(t, func(*grpc.Server) {})
	if err := Follow(t.Context(), Config{Conn: conn, Cache: new(journal)}); status.Code(err) != codes.Unimplemented {
		t.Errorf("ended with %v, want Unimplemented, which selects Poll", err)
	}
}

// spire answers as SPIRE does for a large set: revisions first, split over
// messages, full entries for what is asked for.
type spire struct {
	entryv1.UnimplementedEntryServer
	bundlev1.UnimplementedBundleServer
	rounds []map[string]int64
	round  int
	asked  [][]string
}

func (s *spire) SyncAuthorizedEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if s.round >= len(s.rounds) {
		return status.Error(codes.PermissionDenied, "enough")
	}
	now := s.rounds[s.round]
	s.round++
	ids := make([]string, 0, len(now))
	for id := range now {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for i, id := range ids {
		resp := &entryv1.SyncAuthorizedEntriesResponse{
			EntryRevisions: []*entryv1.EntryRevision{{Id: id, RevisionNumber: now[id]}}, More: i < len(ids)-1,
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client has all it wanted
		}
		s.asked = append(s.asked, req.GetIds())
		resp := &entryv1.SyncAuthorizedEntriesResponse{}
		for _, id := range req.GetIds() {
			resp.Entries = append(resp.Entries, &types.Entry{Id: id, RevisionNumber: now[id]})
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (s *spire) GetBundle(context.Context, *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	return &types.Bundle{TrustDomain: "example.org"}, nil
}

func TestPollFollowsSPIRE(t *testing.T) {
	t.Parallel()
	s := &spire{rounds: []map[string]int64{{"a": 0, "b": 0, "c": 5}, {"a": 0, "b": 1}}}
	conn := serve(t, func(g *grpc.Server) {
		entryv1.RegisterEntryServer(g, s)
		bundlev1.RegisterBundleServer(g, s)
	})
	p := &poller{
		cache: new(journal), entries: entryv1.NewEntryClient(conn), bundles: bundlev1.NewBundleClient(conn),
		known: map[string]*types.Entry{}, held: map[string]*types.Bundle{},
	}
	j := new(journal)
	p.cache = j
	for i, want := range []map[string]uint64{{"a": 0, "b": 0, "c": 5}, {"a": 0, "b": 1}} {
		if err := p.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, j.entries); diff != "" {
			t.Errorf("round %d: %s", i, diff)
		}
	}
	if diff := cmp.Diff([][]string{{"a", "b", "c"}, {"b"}}, s.asked); diff != "" {
		t.Errorf("full entries asked for: %s", diff)
	}
	if err := p.round(t.Context()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("third round: %v, want the server's refusal", err)
	}
}

// TestPollAsksAsOftenAsToldTo: three rounds and the refusal of the fourth come
// within a moment when PollInterval says so, and take seconds by default.
func TestPollAsksAsOftenAsToldTo(t *testing.T) {
	t.Parallel()
	s := &spire{rounds: []map[string]int64{{"a": 0}, {"a": 0}, {"a": 0}}}
	conn := serve(t, func(g *grpc.Server) {
		entryv1.RegisterEntryServer(g, s)
		bundlev1.RegisterBundleServer(g, s)
	})
	synced, begin := 0, time.Now()
	err := Poll(t.Context(), Config{Conn: conn, Cache: new(journal), PollInterval: 20 * time.Millisecond, OnSynced: func() { synced++ }})
	took := time.Since(begin)
	if status.Code(err) != codes.PermissionDenied || synced != 3 {
		t.Errorf("%d rounds, then %v", synced, err)
	}
	if took < 3*18*time.Millisecond || took > PollInterval {
		t.Errorf("it took %v", took)
	}
}
