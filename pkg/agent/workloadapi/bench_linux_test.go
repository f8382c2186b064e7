package workloadapi_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// served is a Workload API in a process of its own, so that what it costs can
// be told from what the load costs. The attestor does nothing.
type served struct {
	b   *testing.B
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader

	socket string
}

// serveChild is the process. Each line on its input is an entry to make.
func serveChild(b *testing.B, socket string) {
	lis, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	w := newWorld(b, option{listener: lis, quiet: true})
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	fmt.Println("open")
	in := bufio.NewScanner(os.Stdin)
	for i := 0; in.Scan(); i++ { // until the parent closes it
		switch in.Text() {
		case "gc":
			runtime.GC()
			debug.FreeOSMemory()
		default:
			if err := w.cache.Apply(w.server.Put(w.server.Entry(fmt.Sprint("more", i), fmt.Sprint("/more/", i), "a"))); err != nil {
				b.Fatal(err)
			}
		}
		fmt.Println("done")
	}
}

// BenchmarkServe is not a benchmark: it is the process behind the others.
func BenchmarkServe(b *testing.B) {
	socket := os.Getenv("CREDENCE_BENCH_SOCKET")
	if socket == "" {
		b.Skip("run by the other benchmarks")
	}
	serveChild(b, socket)
}

func serve(b *testing.B) *served {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	s := &served{b: b, socket: filepath.Join(b.TempDir(), "api.sock")}
	s.cmd = exec.Command(exe, "-test.run=^$", "-test.bench=^BenchmarkServe$", "-test.benchtime=1x")
	if path := os.Getenv("CREDENCE_BENCH_PROFILE"); path != "" {
		s.cmd.Args = append(s.cmd.Args, "-test.cpuprofile="+path)
	}
	s.cmd.Env = append(os.Environ(), "CREDENCE_BENCH_SOCKET="+s.socket)
	s.cmd.Stderr = os.Stderr
	in, err := s.cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	s.in = in
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = s.cmd.Wait()
	})
	s.until("open")
	return s
}

func (s *served) until(want string) {
	s.b.Helper()
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.b.Fatal(err)
		}
		if strings.TrimSpace(line) == want {
			return
		}
	}
}

func (s *served) say(what string) {
	s.b.Helper()
	if _, err := fmt.Fprintln(s.in, what); err != nil {
		s.b.Fatal(err)
	}
	s.until("done")
}

// cpu is the processor time the process has used.
func (s *served) cpu() time.Duration {
	s.b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		s.b.Fatal(err)
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	ticks := 0
	for _, i := range []int{11, 12} {
		n, err := strconv.Atoi(f[i])
		if err != nil {
			s.b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// rss is the anonymous memory of the process, in KiB, after a collection.
func (s *served) rss() int {
	s.b.Helper()
	s.say("gc")
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				s.b.Fatal(err)
			}
			return n
		}
	}
	s.b.Fatal("no RssAnon")
	return 0
}

func (s *served) connect() (*grpc.ClientConn, workload.SpiffeWorkloadAPIClient) {
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.socket)
		}))
	if err != nil {
		s.b.Fatal(err)
	}
	return conn, workload.NewSpiffeWorkloadAPIClient(conn)
}

func headed(b *testing.B) context.Context {
	return metadata.AppendToOutgoingContext(b.Context(), "workload.spiffe.io", "true")
}

// load calls do b.N times from 16 callers, and reports the process's CPU.
func (s *served) load(do func(caller int) error) {
	s.b.Helper()
	const callers = 16
	var wg sync.WaitGroup
	before := s.cpu()
	s.b.ResetTimer()
	for c := range callers {
		wg.Go(func() {
			for i := c; i < s.b.N; i += callers {
				if err := do(c); err != nil {
					s.b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.b.StopTimer()
	s.b.ReportMetric(float64((s.cpu()-before).Microseconds())/float64(s.b.N), "agent-cpu-µs/op")
}

// BenchmarkX509NewConnection is P14 without the attestor.
func BenchmarkX509NewConnection(b *testing.B) {
	s := serve(b)
	ctx := headed(b)
	s.load(func(int) error {
		conn, client := s.connect()
		defer func() { _ = conn.Close() }()
		stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	})
}

// BenchmarkJWTCached is P15 without the attestor.
func BenchmarkJWTCached(b *testing.B) {
	s := serve(b)
	ctx := headed(b)
	_, client := s.connect()
	s.load(func(int) error {
		_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"bench"}})
		return err
	})
}

// BenchmarkJWTValidate is P16 without the attestor.
func BenchmarkJWTValidate(b *testing.B) {
	s := serve(b)
	ctx := headed(b)
	_, client := s.connect()
	got, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"bench"}})
	if err != nil {
		b.Fatal(err)
	}
	s.load(func(int) error {
		_, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "bench", Svid: got.GetSvids()[0].GetSvid()})
		return err
	})
}

// BenchmarkStreams is P17 without the attestor: b.N times 2,000 streams.
func BenchmarkStreams(b *testing.B) {
	n := 2000
	if testing.Short() {
		n = 100
	}
	for range b.N {
		b.StopTimer()
		s := serve(b)
		ctx := headed(b)
		before := s.rss()
		streams := make([]grpc.ServerStreamingClient[workload.X509SVIDResponse], n)
		b.StartTimer()
		start := time.Now()
		var wg sync.WaitGroup
		for c := range 16 {
			wg.Go(func() {
				for i := c; i < n; i += 16 {
					_, client := s.connect()
					var err error
					if streams[i], err = client.FetchX509SVID(ctx, &workload.X509SVIDRequest{}); err == nil {
						_, err = streams[i].Recv()
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(time.Since(start).Seconds()*1000, "fill-ms")
		b.ReportMetric(float64(s.rss()-before)/float64(n), "KiB/stream")

		got := make([]time.Time, n)
		for i := range n {
			wg.Go(func() {
				if _, err := streams[i].Recv(); err != nil {
					b.Error(err)
				}
				got[i] = time.Now()
			})
		}
		cpu := s.cpu()
		start = time.Now()
		s.say("entry")
		wg.Wait()
		first, last := got[0], got[0]
		for _, at := range got {
			if at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
		}
		b.ReportMetric(float64(last.Sub(first).Microseconds())/1000, "first-to-last-ms")
		b.ReportMetric(float64(last.Sub(start).Microseconds())/1000, "change-to-last-ms")
		b.ReportMetric(float64((s.cpu()-cpu).Microseconds())/float64(n), "fanout-cpu-µs/stream")
		b.ReportMetric(float64(s.rss()-before)/float64(n), "KiB/stream-after")
	}
}
