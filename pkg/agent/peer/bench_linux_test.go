package peer

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/workload/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// BenchmarkConnection is what a new connection costs here: accept to close,
// the caller's own work included, without gRPC.
func BenchmarkConnection(b *testing.B) {
	c := NewCredentials(Config{})
	raw, err := net.Listen("unix", publicDir(b)+"/api.sock")
	if err != nil {
		b.Fatal(err)
	}
	l := c.Listener(raw)
	defer l.Close()
	for _, proven := range []bool{false, true} {
		b.Run("proven="+strconv.FormatBool(proven), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				client, err := net.Dial("unix", raw.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				conn, err := l.Accept()
				if err != nil {
					b.Fatal(err)
				}
				if proven {
					if _, _, err := c.ServerHandshake(conn); err != nil {
						b.Fatal(err)
					}
				}
				_, _ = conn.Close(), client.Close()
			}
		})
	}
}

// BenchmarkCheck is what each attestation costs here.
func BenchmarkCheck(b *testing.B) {
	p, err := Open(int32(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Check(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAttest is an attestation by the unix attestor and the check after.
func BenchmarkAttest(b *testing.B) {
	for name, cfg := range map[string]unix.Config{"identity": {}, "path": withPath, "sha256": {DiscoverWorkloadPath: true}} {
		b.Run(name, func(b *testing.B) {
			h := startHelper(b, helperOptions{}, "sleep")
			p, err := Open(int32(h.pid()))
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			a := unix.New(cfg)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := a.Attest(b.Context(), p); err != nil {
					b.Fatal(err)
				}
				if err := p.Check(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNewConnectionRPC is P14 without the SVIDs: 16 callers, each RPC on a
// connection of its own, attested and checked. server-µs/op is the CPU time of
// the serving process. "bare" is the same without this package: what gRPC
// itself costs, measured in the same run.
func BenchmarkNewConnectionRPC(b *testing.B) {
	for _, mode := range []string{"bare", "identity", "path"} {
		b.Run(mode, func(b *testing.B) {
			socket := filepath.Join(publicDir(b), "api.sock")
			h := startHelper(b, helperOptions{}, "serve", socket, mode)
			h.expect(b, "serving")
			before := cpuOf(b, h.pid())
			b.SetParallelism(8) // × 2 cores
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
					if err != nil {
						b.Error(err)
						return
					}
					if got := whoAmI(context.Background(), cc); !strings.HasPrefix(got, "identity") {
						b.Error(got)
					}
					_ = cc.Close()
				}
			})
			b.ReportMetric(float64((cpuOf(b, h.pid())-before).Microseconds())/float64(b.N), "server-µs/op")
		})
	}
}

// cpuOf is the CPU time a process has used, to 10 ms.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
