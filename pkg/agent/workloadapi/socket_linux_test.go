package workloadapi_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	gospiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const childEnv = "CREDENCE_TEST_WORKLOAD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		if err := child(mode, os.Args[1]); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child is a workload in a process of its own: it opens a stream, says so, and
// then does what its mode is.
func child(mode, socket string) error {
	if mode == "flood" {
		return flood(socket)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true")
	s, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return err
	}
	if mode == "stuck" { // It never reads, and leaves when it is told to.
		told := make(chan os.Signal, 1)
		signal.Notify(told, unix.SIGUSR1)
		fmt.Println("open")
		<-told
		mode = "leave"
	} else {
		if _, err := s.Recv(); err != nil {
			return err
		}
		fmt.Println("open")
	}
	switch mode {
	case "wait":
		for {
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
	case "exec": // another program, with the connection
		if err := keepDescriptors(); err != nil {
			return err
		}
		return unix.Exec("/bin/sleep", []string{"sleep", "60"}, nil)
	case "leave": // to a child that goes on holding the connection
		if err := keepDescriptors(); err != nil {
			return err
		}
		// A shell keeps the descriptors, as Go's exec would not.
		return unix.Exec("/bin/sh", []string{"sh", "-c", "sleep 60 & exit 0"}, nil)
	}
	return fmt.Errorf("no such mode: %s", mode)
}

// flood opens streams, each on a connection of its own, until one is refused.
func flood(socket string) error {
	ctx := metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true")
	for n := 0; ; n++ {
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		s, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		if err != nil {
			fmt.Println(n, "streams")
			_, err = os.Stdin.Read(make([]byte, 1)) // until the parent is gone
			return err
		}
	}
}

// listenAt listens on a Unix socket that everybody may use.
func listenAt(t testing.TB, path string) net.Listener {
	t.Helper()
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	return lis
}

func keepDescriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(link, "socket:") {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// realWorld is a Workload API on a Unix socket, with the kernel's word on who
// calls.
func realWorld(t testing.TB) (*world, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, option{listener: lis})
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	return w, path
}

func startChild(t *testing.T, mode, socket string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, socket)
	cmd.Env = append(os.Environ(), childEnv+"="+mode)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "open\n" {
		t.Fatalf("the workload says %q, %v", line, err)
	}
	return cmd
}

// streams is the number of open streams.
func (w *world) streams() int {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "credence_workload_api_streams" {
			return int(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	w.t.Fatal("no such metric")
	return 0
}

func (w *world) waitForStreams(want int) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); w.streams() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%d streams are open, want %d", w.streams(), want)
		}
	}
}

func TestStreamEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	w, path := realWorld(t)
	cmd := startChild(t, "wait", path)
	w.waitForStreams(1)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.waitForStreams(0)
}

func TestS23_StreamEndsWithItsProcessThoughAChildHoldsTheSocket(t *testing.T) {
	t.Parallel()
	w, path := realWorld(t)
	startChild(t, "leave", path)
	w.waitForStreams(0)
}

// TestS25_StreamOfAnotherProgramGetsNothing: the process that opened the stream
// runs another program; what comes next is not sent to it.
func TestS25_StreamOfAnotherProgramGetsNothing(t *testing.T) {
	t.Parallel()
	w, path := realWorld(t)
	cmd := startChild(t, "exec", path)
	for { // until it runs the other program
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if string(name) == "sleep\n" {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := w.cache.Apply(w.server.Put(w.server.Entry("e2", "/two", "a"))); err != nil {
		t.Fatal(err)
	}
	w.waitForStreams(0)
	if log := w.log.String(); !strings.Contains(log, "a process has changed since it connected") || strings.Count(log, "msg=sent") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

// TestGoSPIFFE uses the API as applications do.
func TestGoSPIFFE(t *testing.T) {
	t.Parallel()
	w, path := realWorld(t)
	foreign := newForeign(t, "foreign.org")
	e := w.server.Entry("e1", "/one", "a")
	e.FederatesWith, e.Hint = []string{"foreign.org"}, "internal"
	w.server.Put(e)
	w.sync()
	d := w.server.Put()
	d.Bundles = append(d.Bundles, foreign.Bundle())
	if err := w.cache.Apply(d); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	addr := gospiffe.WithClientOptions(gospiffe.WithAddr("unix://" + path))
	x, err := gospiffe.NewX509Source(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	svid, err := x.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID.String() != "spiffe://example.org/one" || svid.Hint != "internal" {
		t.Errorf("%s with hint %q", svid.ID, svid.Hint)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, x); err != nil {
		t.Error(err)
	}
	if _, err := x.GetX509BundleForTrustDomain(foreign.TrustDomain); err != nil {
		t.Error(err)
	}
	e.DnsNames = []string{"new.example.org"}
	if err := w.cache.Apply(w.server.Put(e)); err != nil {
		t.Fatal(err)
	}
	for len(svid.Certificates[0].DNSNames) == 0 {
		select {
		case <-x.Updated():
		case <-ctx.Done():
			t.Fatal("no update")
		}
		if svid, err = x.GetX509SVID(); err != nil {
			t.Fatal(err)
		}
	}
	testGoSPIFFEJWT(ctx, t, addr, path)
}

func testGoSPIFFEJWT(ctx context.Context, t *testing.T, addr gospiffe.SourceOption, path string) {
	t.Helper()
	j, err := gospiffe.NewJWTSource(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	token, err := j.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "me", Subject: spiffeid.RequireFromString("spiffe://example.org/one")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(token.Marshal(), j, []string{"me"}); err != nil {
		t.Error(err)
	}
	client, err := gospiffe.New(ctx, gospiffe.WithAddr("unix://"+path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if v, err := client.ValidateJWTSVID(ctx, token.Marshal(), "me"); err != nil || v.ID != token.ID {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := client.ValidateJWTSVID(ctx, token.Marshal(), "you"); err == nil {
		t.Error("accepted for another audience")
	}
	set, err := client.FetchJWTBundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if set.Len() != 2 {
		t.Errorf("JWT bundles of %d trust domains", set.Len())
	}
}

// TestS21_ConnectionsLeaveNothing: descriptors and goroutines are flat over many
// connections, with and without RPCs. SOAK makes it 100,000.
func TestS21_ConnectionsLeaveNothing(t *testing.T) {
	w, path := realWorld(t)
	n := 1000
	if os.Getenv("SOAK") != "" {
		n = 100_000
	}
	cycle := func(i int) {
		raw, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if _, err := raw.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
		}
		if err := raw.Close(); err != nil {
			t.Fatal(err)
		}
		if i%10 != 0 {
			return
		}
		conn, client := w.connect()
		ctx, cancel := context.WithCancel(w.ctx())
		s, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		recv(t, s)
		cancel()
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (descriptors, goroutines int) {
		w.waitForStreams(0)
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	for i := range 50 {
		cycle(i)
	}
	time.Sleep(200 * time.Millisecond)
	descriptors, goroutines := count()
	for i := range n {
		cycle(i)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		d, g := count()
		if d <= descriptors+2 && g <= goroutines+5 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d connections: %d descriptors and %d goroutines, before %d and %d", n, d, g, descriptors, goroutines)
		}
	}
}
