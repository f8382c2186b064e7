package etcd_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// TestWatchThatIsNeverAnswered: where etcd answers questions but no watch in
// time, because there is too much history to walk, watchers are told to read
// anew, and do not wait for ever.
func TestWatchThatIsNeverAnswered(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	there := open(t, cfg)
	way := newDeaf(t, cfg.Endpoints[0])
	cfg.Endpoints, cfg.RequestTimeout = []string{way.endpoint}, 2*time.Second
	s := open(t, cfg)
	at := put(t, s, "k", "v")
	for b, err := range s.Watch(t.Context(), "", at-1) {
		if errors.Is(err, store.ErrCompacted) {
			break
		}
		if err != nil || b.Revision != at {
			t.Fatalf("batch %+v, %v: want the Update at %d, then none", b, err, at)
		}
		way.deaf.Store(true)
		put(t, there, "k", "w")
	}
	way.deaf.Store(false)
	head, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := put(t, there, "k", "x")
	for b, err := range s.Watch(t.Context(), "", head) {
		if err != nil || b.Revision != want {
			t.Errorf("after reading anew at %d: %+v, %v: want the Update at %d", head, b, err, want)
		}
		break
	}
}

// TestWatchesThatWereAnswered: a member that answers each watch and hangs later
// costs nobody the history, however often it does, where nobody writes.
func TestWatchesThatWereAnswered(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	way := newDeaf(t, etcdtest.NewCluster(t, 1).Endpoints()[0])
	way.passes = 3 // It is there, what it begins with, and the first answer.
	log := make(lines, 64)
	cfg.Endpoints, cfg.RequestTimeout, cfg.Logger = []string{way.endpoint}, 3*time.Second, slog.New(slog.NewTextHandler(log, nil))
	s := open(t, cfg)
	at := put(t, s, "k", "v")
	for b, err := range s.Watch(t.Context(), "", at-1) {
		if err != nil || b.Revision != at {
			t.Fatalf("batch %+v, %v: want the Update at %d", b, err, at)
		}
		break
	}
	way.deaf.Store(true)
	for range 5 { // It is said each time that it hangs.
		<-log
	}
	for b, err := range s.Watch(t.Context(), "", at-1) {
		if err != nil || b.Revision != at {
			t.Errorf("batch %+v, %v: want the Update at %d", b, err, at)
		}
		break
	}
}

// lines gets a log's, as many as it has room for.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// deaf is a way to a member that begins each watch and, when told so, holds back
// all that the watch would say after its first messages.
type deaf struct {
	endpoint string
	passes   int
	deaf     atomic.Bool
	to       *grpc.ClientConn
}

func newDeaf(t *testing.T, endpoint string) *deaf {
	t.Helper()
	to, err := grpc.NewClient(strings.TrimPrefix(endpoint, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &deaf{endpoint: "http://" + l.Addr().String(), passes: 1, to: to}
	srv := grpc.NewServer(grpc.UnknownServiceHandler(d.forward), grpc.ForceServerCodecV2(bytesCodec{}))
	var serving errgroup.Group
	serving.Go(func() error { return srv.Serve(l) })
	t.Cleanup(func() {
		srv.Stop()
		if err := errors.Join(serving.Wait(), to.Close()); err != nil {
			t.Error(err)
		}
	})
	return d
}

// forward takes one call to the member.
func (d *deaf) forward(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	md, _ := metadata.FromIncomingContext(in.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(in.Context(), md))
	defer cancel()
	out, err := d.to.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(bytesCodec{}))
	if err != nil {
		return err
	}
	var asking errgroup.Group
	defer asking.Wait() //nolint:errcheck // What the member answers is what counts.
	asking.Go(func() error {
		for b := []byte(nil); ; {
			if err := in.RecvMsg(&b); errors.Is(err, io.EOF) {
				return out.CloseSend()
			} else if err != nil {
				return err
			}
			if err := out.SendMsg(&b); err != nil {
				return err
			}
		}
	})
	defer cancel()
	for n := 0; ; n++ {
		var b []byte
		if err := out.RecvMsg(&b); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if n >= d.passes && strings.HasSuffix(method, "/Watch") && d.deaf.Load() {
			continue
		}
		if err := in.SendMsg(&b); err != nil {
			return err
		}
	}
}

// bytesCodec leaves messages as they are: *[]byte.
type bytesCodec struct{}

// Name implements encoding.CodecV2.
func (bytesCodec) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

// Unmarshal implements encoding.CodecV2.
func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
