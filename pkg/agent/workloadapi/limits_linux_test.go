package workloadapi_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/peer"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func limited(l peer.Limits) option { return option{limits: l} }

// one is a world with one entry, for the callers' selector.
func one(t *testing.T, opts ...option) *world {
	t.Helper()
	w := newWorld(t, opts...)
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	return w
}

// eventually tries until ok says yes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 10 s: %s", what)
		}
	}
}

// open opens a stream on a connection of its own and says how that went.
func (w *world) open() (close func() error, err error) {
	conn, client := w.connect()
	s, err := client.FetchX509SVID(w.ctx(), &workload.X509SVIDRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	return conn.Close, err
}

// A user's processes get half of the connections, at the most: of 8, the fourth
// is the last. One that is closed makes room.
func TestConnectionsOfOneUser(t *testing.T) {
	t.Parallel()
	w := one(t, limited(peer.Limits{Connections: 8}))
	var first func() error
	for i := range 4 {
		end, err := w.open()
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		if i == 0 {
			first = end
		}
	}
	if _, err := w.open(); status.Code(err) != codes.Unavailable {
		t.Errorf("connection 5 of 8, all of one user: %v", err)
	}
	if err := first(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a connection after one was closed", func() bool {
		_, err := w.open()
		return err == nil
	})
	if log := w.log.String(); strings.Count(log, "connection refused; this is said once a minute") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// The same of calls, on one connection.
func TestCallsOfOneUser(t *testing.T) {
	t.Parallel()
	w := one(t, limited(peer.Limits{Calls: 6}))
	ctx, cancel := w.cancellable()
	for range 3 {
		s, err := w.client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		recv(t, s)
	}
	_, err := w.x509().Recv()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "6 may be in all") {
		t.Errorf("call 4 of 6, all of one user: %v", err)
	}
	if _, err := w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a call that is no stream: %v", err)
	}
	cancel()
	eventually(t, "a call after others have ended", func() bool {
		_, err := w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{Audience: []string{"a"}})
		return err == nil
	})
	for range 100 { // Calls that have ended are forgotten.
		if _, err := w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{Audience: []string{"a"}}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnfinishedMessagesAreBounded: a process that begins messages and does not
// end them is cut off, and one that ends them is not.
func TestUnfinishedMessagesAreBounded(t *testing.T) {
	t.Parallel()
	w := one(t, limited(peer.Limits{ConnBytes: 256 << 10, UserBytes: 512 << 10}))
	raw, err := w.dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := io.WriteString(raw, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(raw, raw)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, raw)
	}()
	var headers bytes.Buffer
	enc := hpack.NewEncoder(&headers)
	begun := append([]byte{0, 0, 3, 0xff, 0xff}, make([]byte, 16<<10-5)...) // of 256 KiB
	for id := uint32(1); id < 500; id += 2 {
		headers.Reset()
		for _, h := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":path", workload.SpiffeWorkloadAPI_FetchJWTSVID_FullMethodName},
			{":authority", "x"},
			{"content-type", "application/grpc"},
			{"te", "trailers"},
		} {
			if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
				t.Fatal(err)
			}
		}
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers.Bytes(), EndHeaders: true}) != nil || f.WriteData(id, false, begun) != nil {
			break
		}
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the agent holds what comes")
	}
	audience := []string{strings.Repeat("a", 200)}
	for range 50 {
		audience = append(audience, audience[0])
	}
	for range 200 { // 2 MiB of them
		if _, err := w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{Audience: audience[:16]}); err != nil {
			t.Fatal(err)
		}
	}
}

// The rates of experimental.ratelimit are those of a set of selectors.
func TestRates(t *testing.T) {
	t.Parallel()
	w := one(t, option{config: func(c *workloadapi.Config) {
		c.Rates = workloadapi.Rates{FetchX509SVID: 2, FetchJWTSVID: 1, FetchX509Bundles: 1, FetchJWTBundles: 1}
	}})
	jwt := func() error {
		_, err := w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{Audience: []string{"a"}})
		return err
	}
	x509 := func() error {
		_, err := w.x509().Recv()
		return err
	}
	x509Bundles := func() error {
		s, err := w.client.FetchX509Bundles(w.ctx(), &workload.X509BundlesRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	jwtBundles := func() error {
		s, err := w.client.FetchJWTBundles(w.ctx(), &workload.JWTBundlesRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	for name, tc := range map[string]struct {
		call func() error
		n    int
	}{
		"FetchX509SVID": {x509, 2}, "FetchJWTSVID": {jwt, 1}, "FetchX509Bundles": {x509Bundles, 1}, "FetchJWTBundles": {jwtBundles, 1},
	} {
		refused := 0
		for i := range tc.n + 4 {
			switch err := tc.call(); {
			case err == nil:
			case i < tc.n:
				t.Errorf("%s, call %d: %v", name, i+1, err)
			default:
				refused++
				wantStatus(t, err, codes.Unavailable, "rate limit exceeded for /SpiffeWorkloadAPI/"+name)
			}
		}
		if refused == 0 {
			t.Errorf("%s: nothing of %d calls in a row was refused, want after %d", name, tc.n+4, tc.n)
		}
	}
	if _, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a call without a rate: %v", err)
	}
	w.attestor.set(nil, "a", "b") // Another set of selectors.
	if err := jwt(); err != nil {
		t.Errorf("other selectors: %v", err)
	}
}

// TestStuckReaderGoesWithItsProcess: a workload that does not read holds up a
// message; when it is gone the stream is, though a child holds the connection.
func TestStuckReaderGoesWithItsProcess(t *testing.T) {
	t.Parallel()
	w, path := realWorld(t)
	for i := range 150 { // A message is larger than the window of a stream.
		w.server.Put(w.server.Entry("more"+string(rune('a'+i%26))+string(rune('a'+i/26)), "/more", "a"))
	}
	w.sync()
	cmd := startChild(t, "stuck", path)
	w.waitForStreams(1)
	stuck := func() bool {
		buf := make([]byte, 1<<20)
		return bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("(*follower).send"))
	}
	eventually(t, "the stream is stuck", func() bool {
		e := w.server.Entry("e1", "/one", "a")
		e.Hint = time.Now().Format("050000")
		if err := w.cache.Apply(w.server.Put(e)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		return stuck()
	})
	if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	w.waitForStreams(0)
}

// TestAnotherUserIsServed: what a user takes of connections leaves some for
// others. It takes two users, and so root.
func TestAnotherUserIsServed(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can be another user")
	}
	// A place where nobody may run this test and reach the socket.
	dir, err := os.MkdirTemp("", "credence")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	program, socket := filepath.Join(dir, "test"), filepath.Join(dir, "api.sock")
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	w := one(t, limited(peer.Limits{Connections: 40}), option{listener: listenAt(t, socket)})
	cmd := exec.CommandContext(t.Context(), program, socket)
	cmd.Env = []string{childEnv + "=flood"}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil { // It lives for as long as this is open.
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	said := make([]byte, 512)
	n, err := out.Read(said)
	if err != nil || string(said[:n]) != "20 streams\n" {
		t.Fatalf("nobody's process says %q, %v; want half of 40", said[:n], err)
	}
	for i := range 10 {
		if _, err := w.open(); err != nil {
			t.Errorf("connection %d of another user: %v", i+1, err)
		}
	}
}

// A request has at most 256 KiB, and its headers 16 KiB.
func TestOversizedRequest(t *testing.T) {
	t.Parallel()
	const limit = 256 << 10
	w := one(t)
	for n, want := range map[int]codes.Code{limit - 1: codes.OK, limit: codes.OK, limit + 1: codes.ResourceExhausted} {
		req := &workload.JWTSVIDRequest{Audience: []string{"a"}}
		// A field that nobody knows, with a header of 5 bytes, beside the 3 of
		// the audience.
		filler := n - 3 - 5
		req.ProtoReflect().SetUnknown(append([]byte{0xfa, 0x7f, byte(filler)&0x7f | 0x80, byte(filler>>7)&0x7f | 0x80, byte(filler >> 14)}, make([]byte, filler)...))
		if size := proto.Size(req); size != n {
			t.Fatalf("the request has %d bytes, want %d", size, n)
		}
		if _, err := w.client.FetchJWTSVID(w.ctx(), req); status.Code(err) != want {
			t.Errorf("a request of %d bytes: %v, want %v", n, err, want)
		}
	}
	for n, ok := range map[int]bool{8 << 10: true, 32 << 10: false} {
		ctx := metadata.AppendToOutgoingContext(w.ctx(), "x", strings.Repeat("x", n))
		if _, err := w.client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}}); (err == nil) != ok {
			t.Errorf("headers of %d bytes: %v, want ok %v", n, err, ok)
		}
	}
}

// One connection has at most so many calls under way; the next waits.
func TestStreamLimit(t *testing.T) {
	t.Parallel()
	w := one(t, option{config: func(c *workloadapi.Config) { c.MaxStreams = 3 }})
	ctx, cancel := w.cancellable()
	for range 3 {
		s, err := w.client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		recv(t, s)
	}
	short, stop := w.cancellable()
	time.AfterFunc(100*time.Millisecond, stop)
	if s, err := w.client.FetchX509SVID(short, &workload.X509SVIDRequest{}); err == nil {
		if _, err := s.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("stream 4 of 3: %v", err)
		}
	}
	cancel()
	recv(t, w.x509())
}
