package operatorapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/operatorapi"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/store/dump"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// serve puts the service on a world, as package server does for the local admin.
func serve(t *testing.T, w *apitest.World) (operatorv1.OperatorClient, *journal) {
	t.Helper()
	out := new(journal)
	log := slog.New(slog.NewTextHandler(out, nil))
	s := operatorapi.New(operatorapi.Config{Store: w.Store, Index: w.Index, Feed: w.Hub, Logger: log, Audit: audit.New(log)})
	caller := policy.Caller{Roles: policy.Local, Peer: "uid:0"}
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			resp, err := handler(policy.NewContext(ctx, caller), req)
			if err != nil {
				return nil, rpcerr.Call(ctx, log, err)
			}
			return resp, nil
		}),
		grpc.StreamInterceptor(func(impl any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			err := handler(impl, &admitted{ss, policy.NewContext(ss.Context(), caller)})
			if err != nil {
				return rpcerr.Call(ss.Context(), log, err)
			}
			return nil
		}),
	)
	operatorv1.RegisterOperatorServer(srv, s)
	lis := bufconn.Listen(1 << 16)
	var running sync.WaitGroup
	running.Go(func() { _ = srv.Serve(lis) })
	conn, err := grpc.NewClient("passthrough:admin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		running.Wait()
	})
	return operatorv1.NewOperatorClient(conn), out
}

type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (a *admitted) Context() context.Context { return a.ctx }

// fill registers n entries.
func fill(t *testing.T, w *apitest.World, from, n int) {
	t.Helper()
	parent := w.Entry(t, w.TrustDomain.ID(), "/spire/agent/test/a").SPIFFEID
	for len := 100; n > 0; n, from = n-len, from+len {
		entries := make([]*registry.Entry, 0, len)
		for i := range min(len, n) {
			e := w.Entry(t, parent, fmt.Sprintf("/w/%d", from+i))
			e.DNSNames = []string{strings.Repeat("a", 60) + ".example.org"}
			entries = append(entries, e)
		}
		w.Create(t, entries...)
	}
}

// receive takes a whole backup.
func receive(stream operatorv1.Operator_BackupClient) ([]byte, *operatorv1.BackupTrailer, error) {
	var out []byte
	var trailer *operatorv1.BackupTrailer
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return out, trailer, nil
		case err != nil:
			return out, trailer, err
		case trailer != nil:
			return nil, nil, errors.New("there is something behind the trailer")
		case m.GetTrailer() != nil:
			trailer = m.GetTrailer()
		case len(m.GetChunk()) == 0 || len(m.GetChunk()) > 256<<10:
			return nil, nil, fmt.Errorf("a chunk of %d bytes", len(m.GetChunk()))
		default:
			out = append(out, m.GetChunk()...)
		}
	}
}

// TestBackup copies a store while entries are created, and makes another store
// of the copy.
func TestBackup(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client, log := serve(t, w)
	fill(t, w, 0, 3000)
	var writing sync.WaitGroup
	stream, err := client.Backup(t.Context(), &operatorv1.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	writing.Go(func() { fill(t, w, 3000, 300) })
	data, trailer, err := receive(stream)
	writing.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], trailer.GetSha256()) || uint64(len(data)) != trailer.GetBytes() || len(data) < 600<<10 {
		t.Errorf("%d bytes came, the trailer says %v", len(data), trailer)
	}
	summary, err := dump.Verify(bytes.NewReader(data))
	if err != nil || uint64(summary.Revision) != trailer.GetRevision() || summary.StoreID != w.Store.Info().ID {
		t.Errorf("the copy is %+v, %v; the trailer says %v", summary, err, trailer)
	}
	restored, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "restored.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	if _, err := dump.Read(t.Context(), bytes.NewReader(data), restored, nil); err != nil {
		t.Fatal(err)
	}
	tables, err := registry.CountTables(t.Context(), restored, registry.EntriesTable)
	if err != nil || len(tables) != 1 || tables[0].Count < 3000 || tables[0].Count > 3300 {
		t.Errorf("the copy has %+v, %v", tables, err)
	}
	info, err := client.StoreInfo(t.Context(), &operatorv1.StoreInfoRequest{})
	if err != nil || info.GetLastBackupRevision() != trailer.GetRevision() || time.Since(info.GetLastBackup().AsTime()) > time.Minute {
		t.Errorf("the last backup is %v at %d, %v", info.GetLastBackup().AsTime(), info.GetLastBackupRevision(), err)
	}
	for _, want := range []string{"action=store.backup", "outcome=done", `msg="the store was backed up"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not have %q:\n%s", want, log)
		}
	}
}

// TestBackupBrokenOff: whoever goes away in the middle has no backup, and the
// server knows.
func TestBackupBrokenOff(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client, log := serve(t, w)
	fill(t, w, 0, 3000)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := client.Backup(ctx, &operatorv1.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dump.Verify(bytes.NewReader(first.GetChunk())); !errors.Is(err, dump.ErrDamaged) {
		t.Errorf("the first chunk alone: %v", err)
	}
	cancel()
	for !strings.Contains(log.String(), "outcome=refused") {
		time.Sleep(time.Millisecond)
	}
	info, err := client.StoreInfo(t.Context(), &operatorv1.StoreInfoRequest{})
	if err != nil || info.GetLastBackup() != nil {
		t.Errorf("it counts as a backup: %v, %v", info, err)
	}
}

// TestBackupOfNoStore: a store that goes away is told as such.
func TestBackupOfNoStore(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{Wrap: func(s store.Store) store.Store { return &closing{Store: s} }})
	client, _ := serve(t, w)
	w.Store.(*closing).closed = true
	stream, err := client.Backup(t.Context(), &operatorv1.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := receive(stream); status.Code(err) != codes.Unavailable {
		t.Errorf("a backup: %v, want Unavailable", err)
	}
	if _, err := client.StoreInfo(t.Context(), &operatorv1.StoreInfoRequest{Sizes: true}); status.Code(err) != codes.Unavailable {
		t.Errorf("store info: %v, want Unavailable", err)
	}
}

// closing is a store that can be made to answer as after Close.
type closing struct {
	store.Store
	closed bool
}

func (c *closing) View(ctx context.Context, fn func(store.Tx) error) error {
	if c.closed {
		return store.ErrClosed
	}
	return c.Store.View(ctx, fn)
}

func TestStoreInfo(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client, _ := serve(t, w)
	fill(t, w, 0, 7)
	w.NewAgent(t, "one")
	if _, err := w.Registry.CreateJoinToken(t.Context(), "secret", time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	w.Fresh(t)
	want := map[string]uint64{"entries": 7, "agents": 1, "bundles": 1, "join_tokens": 1, "server_journals": 1}
	for _, sizes := range []bool{false, true} {
		info, err := client.StoreInfo(t.Context(), &operatorv1.StoreInfoRequest{Sizes: sizes})
		if err != nil {
			t.Fatal(err)
		}
		head, err := w.Store.Head(t.Context())
		if own := w.Store.Info(); err != nil || info.GetEngine() != own.Engine || info.GetStoreId() != own.ID || int(info.GetFormat()) != own.Format || info.GetRevision() != uint64(head) {
			t.Errorf("it says %v of %+v at %d, %v", info, own, head, err)
		}
		got := make(map[string]uint64)
		for _, table := range info.GetTables() {
			if _, asked := want[table.GetName()]; asked {
				got[table.GetName()] = table.GetCount()
			}
			if (table.GetBytes() > 0) != (sizes && table.GetCount() > 0) {
				t.Errorf("sizes %v: %v", sizes, table)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("sizes %v (-want +got):\n%s", sizes, diff)
		}
		if wantRows := map[bool]int{false: 5, true: 9}[sizes]; len(info.GetTables()) != wantRows {
			t.Errorf("sizes %v: %v", sizes, info.GetTables())
		}
	}
}

// follow opens an agent's stream; what it returns ends it.
func follow(t *testing.T, w *apitest.World, name string, alternatives uint32) context.CancelFunc {
	t.Helper()
	agent := w.NewAgent(t, name)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := feedv1.NewFeedClient(w.Dial(t, &agent.Cert)).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{Alternatives: alternatives}}}); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetSynced() != nil {
			return cancel
		}
	}
}

func drain(t *testing.T, client operatorv1.OperatorClient, req *operatorv1.DrainRequest) ([]*operatorv1.DrainResponse, error) {
	t.Helper()
	stream, err := client.Drain(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var out []*operatorv1.DrainResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, m)
	}
}

// TestDrain: one agent goes, one has nowhere to go, and one does not go.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client, log := serve(t, w)
	follow(t, w, "alone", 0)
	deaf := follow(t, w, "deaf", 1)
	goes := follow(t, w, "goes", 1)
	time.AfterFunc(100*time.Millisecond, goes)

	got, err := drain(t, client, &operatorv1.DrainRequest{Over: durationpb.New(10 * time.Millisecond), Wait: durationpb.New(time.Second)})
	if err != nil || len(got) < 2 {
		t.Fatalf("drain: %v, %v", got, err)
	}
	if first, last := got[0], got[len(got)-1]; first.GetLeft() != 2 || first.GetDone() || last.GetLeft() != 1 || last.GetStaying() != 1 || !last.GetDone() {
		t.Errorf("first %v, last %v", first, last)
	}
	deaf()
	got, err = drain(t, client, &operatorv1.DrainRequest{})
	if last := got[len(got)-1]; err != nil || last.GetLeft() != 0 || last.GetStaying() != 1 || !last.GetDone() || !w.Hub.Draining() {
		t.Errorf("the second time: %v, %v", got, err)
	}
	got, err = drain(t, client, &operatorv1.DrainRequest{Undo: true})
	if err != nil || len(got) != 1 || !got[0].GetDone() || w.Hub.Draining() {
		t.Errorf("undone: %v, %v", got, err)
	}
	for _, want := range []string{"action=server.drain", "action=server.undrain"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not have %q", want)
		}
	}
}

// TestDrainIsCalledOff by another call while it waits.
func TestDrainIsCalledOff(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client, _ := serve(t, w)
	follow(t, w, "deaf", 1)
	stream, err := client.Drain(t.Context(), &operatorv1.DrainRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.GetLeft() != 1 {
		t.Fatalf("first: %v, %v", first, err)
	}
	if _, err := drain(t, client, &operatorv1.DrainRequest{Undo: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the first call: %v, want Aborted", err)
	}
}

func TestDrainRefusesTimes(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client, _ := serve(t, w)
	for _, d := range []time.Duration{-1, time.Hour + 1} {
		for field, req := range map[string]*operatorv1.DrainRequest{
			"over: ": {Over: durationpb.New(d)}, "wait: ": {Wait: durationpb.New(d)},
		} {
			_, err := drain(t, client, req)
			if s := status.Convert(err); s.Code() != codes.InvalidArgument || !strings.HasPrefix(s.Message(), field) {
				t.Errorf("%s%v: %v", field, d, err)
			}
		}
	}
	if w.Hub.Draining() {
		t.Error("a refused call drains")
	}
}
