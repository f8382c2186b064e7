package feedapi_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"

	"github.com/credence-id/credence/pkg/server/feedapi"
)

// fromAgent puts the caller into a stream's context, as the server's
// interceptor does.
type fromAgent struct {
	grpc.ServerStream
	ctx context.Context
}

func (s fromAgent) Context() context.Context { return s.ctx }

// serve offers the model's hub to its agent, over TCP.
func (m *model) serve() *grpc.ClientConn {
	m.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	caller := policy.Caller{ID: m.agent, Roles: policy.Agent}
	server := grpc.NewServer(grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		return next(srv, fromAgent{ss, policy.NewContext(ss.Context(), caller)})
	}))
	feedv1.RegisterFeedServer(server, m.hub)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = conn.Close()
		m.hub.Stop()
		server.Stop()
		serving.Wait()
	})
	return conn
}

// heap is the bytes in use.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// One agent is entitled to more entries than go into one message that a gRPC
// client takes by default: it gets all of them, in messages far below that, and
// when it comes back it gets nothing twice. With SOAK=1 they are 200,000; -v shows
// what that takes.
func TestManyEntriesOfOneAgent(t *testing.T) {
	t.Parallel()
	n := 50_000
	if os.Getenv("SOAK") != "" {
		n = 200_000
	}
	m := newModel(t)
	m.commit(&registry.Commit{Entries: m.entriesNamed("e", n)})
	conn := m.serve()

	before, began := heap(), time.Now()
	got := newMirror()
	s := watch(t.Context(), t, conn, got)
	messages, largest := 0, 0
	for !got.isSynced() {
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		messages, largest = messages+1, max(largest, proto.Size(resp))
		if err := got.take(resp); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d entries in %d messages of at most %d bytes, %s; the heap of both ends grew by %d KiB",
		n, messages, largest, time.Since(began).Round(time.Millisecond), (int64(heap())-int64(before))>>10)
	if largest > 128<<10 {
		t.Errorf("a message has %d bytes", largest)
	}
	m.check(got)

	// It comes back, and one entry was changed meanwhile.
	m.commit(&registry.Commit{Entries: m.entriesNamed("e", 1)})
	again := watch(t.Context(), t, conn, got)
	messages, largest = 0, 0
	for synced := got.synced; got.synced == synced; messages++ {
		resp, err := again.Recv()
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, proto.Size(resp))
		if err := got.take(resp); err != nil {
			t.Fatal(err)
		}
	}
	m.check(got)
	if sent := n / feedv1.Buckets * 200; messages > 20 || largest > 2*sent {
		t.Errorf("after one change the agent got %d messages of up to %d bytes", messages, largest)
	}
}

// An agent that does not read has a stream whose memory does not grow with what
// happens meanwhile; when it reads, it has the last state of everything.
func TestAgentThatDoesNotRead(t *testing.T) {
	t.Parallel()
	commits := 200
	if os.Getenv("SOAK") != "" {
		commits = 5000
	}
	const entries, each = 4000, 500 // 100,000 changes at least
	m := newModel(t)
	got := newMirror()
	blocked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s, err := m.hub.NewSession(t.Context(), m.agent, func(r *feedv1.WatchResponse) error {
		once.Do(func() {
			close(blocked)
			<-goOn
		})
		return got.take(r)
	})
	if err != nil {
		t.Fatal(err)
	}
	// 1. The stream is in the middle of sending.
	m.commit(&registry.Commit{Entries: m.entriesNamed("e", 1)})
	var sending sync.WaitGroup
	var failed error
	sending.Go(func() { failed = s.Drain(t.Context()) })
	<-blocked
	// 2. All of this passes.
	for i := range commits {
		c := &registry.Commit{}
		for j := range each {
			id := fmt.Sprint("e", (i*each+j)%entries)
			if (i+j)%3 == 0 {
				c.Entries = append(c.Entries, registry.EntryChange{ID: id})
			} else {
				c.Entries = append(c.Entries, m.entry(id))
			}
		}
		m.commit(c)
		if named, bundles := s.Pending(); named > feedapi.MaxPending || bundles > 1 {
			t.Fatalf("after %d changes, %d entries and %d bundles are pending by name", (i+1)*each, named, bundles)
		}
	}
	// 3. It reads.
	close(goOn)
	sending.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	m.check(got)
}
