package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/credence-id/credence/pkg/ratelimit"
)

// Headers of the PROXY protocol, as a load balancer sends them.
const (
	proxyV1    = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 8081\r\n"
	proxyV1six = "PROXY TCP6 2001:db8::7 2001:db8::1 56324 8081\r\n"
	proxyV2sig = "\r\n\r\n\x00\r\nQUIT\n"
)

// proxyV2 is a version 2 header: command (1 PROXY, 0 LOCAL), family and
// transport, addresses and ports, then whatever else.
func proxyV2(command, family byte, rest []byte) string {
	head := append([]byte(proxyV2sig), 0x20|command, family)
	return string(append(binary.BigEndian.AppendUint16(head, uint16(len(rest))), rest...))
}

var (
	v2four = []byte{192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 0x1f, 0x91}
	v2six  = append(append(netip.MustParseAddr("2001:db8::7").AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice()...), 0xdc, 4, 0x1f, 0x91)
)

// behind starts a server that trusts proxies in a network.
func behind(t *testing.T, cidr string) *running {
	t.Helper()
	cfg := testConfig(t)
	cfg.Server.ProxyProtocolCIDRs = []string{cidr}
	cfg.Server.AuditLogEnabled = true
	return start(t, cfg)
}

// dialVia connects and sends something before TLS.
func (r *running) dialVia(t *testing.T, pieces ...string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+r.Address.String(),
		grpc.WithTransportCredentials(credentials.NewTLS(r.clientTLS(t, nil))),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			for _, piece := range pieces {
				if _, err := io.WriteString(raw, piece); err != nil {
					return nil, err
				}
				if len(pieces) > 1 {
					time.Sleep(5 * time.Millisecond) // So that the kernel sends it alone.
				}
			}
			return raw, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestProxyNamesTheSource: whom a trusted proxy names is who is in the audit log.
func TestProxyNamesTheSource(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		pieces []string
		want   string
	}{
		"v1":              {[]string{proxyV1}, "192.0.2.7:56324"},
		"v1, IPv6":        {[]string{proxyV1six}, "[2001:db8::7]:56324"},
		"v1, unknown":     {[]string{"PROXY UNKNOWN\r\n"}, "127.0.0.1:"},
		"v2":              {[]string{proxyV2(1, 0x11, v2four)}, "192.0.2.7:56324"},
		"v2, IPv6":        {[]string{proxyV2(1, 0x21, v2six)}, "[2001:db8::7]:56324"},
		"v2, split":       {strings.SplitAfter(proxyV2(1, 0x11, v2four), "\n"), "192.0.2.7:56324"},
		"v2, with a TLV":  {[]string{proxyV2(1, 0x11, append(bytes.Clone(v2four), 0x02, 0, 1, 'x'))}, "192.0.2.7:56324"},
		"v2, its own":     {[]string{proxyV2(0, 0, nil)}, "127.0.0.1:"},
		"none":            {nil, "127.0.0.1:"},
		"v2, 4 KiB of it": {[]string{proxyV2(1, 0x11, append(bytes.Clone(v2four), tlv(4096-12-3)...))}, "192.0.2.7:56324"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := behind(t, "127.0.0.0/8")
			if err := calls["GetBundle"](t.Context(), r.dialVia(t, tc.pieces...)); err != nil {
				t.Fatal(err)
			}
			if err := calls["ListEntries"](t.Context(), r.dialVia(t, tc.pieces...)); err == nil {
				t.Fatal("a stranger lists entries")
			}
			soon(t, "the audit log has it", func(context.Context) bool {
				return strings.Contains(r.log.String(), "caller="+tc.want) || strings.Contains(r.log.String(), `caller="`+tc.want)
			})
		})
	}
}

func tlv(n int) []byte {
	return append([]byte{0x04, byte(n >> 8), byte(n)}, make([]byte, n)...)
}

// TestProxyRefuses what is no header, or not a proxy's.
func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		trusted string
		header  string
	}{
		"v1 of an untrusted source": {"10.0.0.0/8", proxyV1},
		"v2 of an untrusted source": {"10.0.0.0/8", proxyV2(1, 0x11, v2four)},
		// The protocol lets a receiver want version 1's line in one piece.
		"v1 in pieces":             {"127.0.0.0/8", "PROXY TCP4 192"},
		"v1 without addresses":     {"127.0.0.0/8", "PROXY TCP4\r\n"},
		"v1 with a name":           {"127.0.0.0/8", "PROXY TCP4 localhost localhost 1 2\r\n"},
		"v1 with a port too large": {"127.0.0.0/8", "PROXY TCP4 192.0.2.7 198.51.100.1 65536 8081\r\n"},
		"v1 without an end":        {"127.0.0.0/8", "PROXY TCP4 " + strings.Repeat("1", 300)},
		"v1 of UDP":                {"127.0.0.0/8", "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n"},
		"v2 of another version":    {"127.0.0.0/8", proxyV2sig + "\x31\x11\x00\x0c" + string(v2four)},
		"v2 cut short":             {"127.0.0.0/8", proxyV2(1, 0x11, v2four[:8])},
		"v2 of a Unix socket":      {"127.0.0.0/8", proxyV2(1, 0x31, make([]byte, 216))},
		"v2 of UDP":                {"127.0.0.0/8", proxyV2(1, 0x12, v2four)},
		"v2 of 64 KiB":             {"127.0.0.0/8", proxyV2(1, 0x11, append(bytes.Clone(v2four), make([]byte, 60000)...))},
		"v2 of no family":          {"127.0.0.0/8", proxyV2(1, 0x00, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := behind(t, tc.trusted)
			conn := r.dialFrom(t, "127.0.0.1")
			// The server may have hung up before all of it is sent.
			_, _ = io.WriteString(conn, tc.header+"\x16\x03\x01")
			if !hangsUp(conn, patience) {
				t.Error("the server waits for more")
			}
			soon(t, "it is counted", func(context.Context) bool { return count(t, r.inside.door.refused, becauseProxy) == 1 })
			if !strings.Contains(r.log.String(), hints[becauseProxy]) {
				t.Error("nobody is told")
			}
			if err := calls["GetBundle"](t.Context(), r.dial(t, nil)); err != nil {
				t.Errorf("a client without a header: %v", err)
			}
		})
	}
}

// A header that comes a byte at a time, or never, ends with the time for it.
func TestSlowProxyHeader(t *testing.T) {
	t.Parallel()
	r := behind(t, "127.0.0.0/8")
	conn := r.dialFrom(t, "127.0.0.1")
	begin := time.Now()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	header := proxyV2(1, 0x11, v2four)
	for i := range len(header) {
		if _, err := io.WriteString(conn, header[i:i+1]); err != nil {
			break
		}
		select {
		case <-gone:
		case <-time.After(500 * time.Millisecond):
			continue
		}
		break
	}
	select {
	case <-gone:
	case <-time.After(handshakeTimeout + 5*time.Second):
		t.Error("the server waits for ever")
	}
	if took := time.Since(begin); took > handshakeTimeout+2*time.Second {
		t.Errorf("the server waited %v", took)
	}
	served(t, r, "after")
}

// Rates are by whom the proxy names, not by the proxy.
func TestRatesBehindAProxy(t *testing.T) {
	t.Parallel()
	r := behind(t, "127.0.0.0/8")
	r.inside.chain.limits.methods[agentv1.Agent_AttestAgent_FullMethodName] = limited{
		Limiter: ratelimit.New[sender](attestRate), name: "attestation", bySource: true,
	}
	attest := func(header string) (delayed float64) {
		t.Helper()
		stream, err := agentv1.NewAgentClient(r.dialVia(t, header)).AttestAgent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err == nil {
			t.Fatal("nothing was attested")
		}
		return count(t, r.inside.chain.limits.total, "attestation", "delayed")
	}
	if n := attest(proxyV1) + attest(proxyV1six); n != 0 {
		t.Errorf("%v attestations of different sources were delayed", n)
	}
	// A busy machine may take so long over a connection that it is its turn.
	soon(t, "one is delayed whose source has just attested", func(context.Context) bool {
		before := attest(proxyV1)
		return attest(proxyV2(1, 0x11, v2four)) == before+1
	})
}

func TestProxyNetworks(t *testing.T) {
	t.Parallel()
	for cidr, ok := range map[string]bool{
		"10.0.0.0/8": true, "192.0.2.7/32": true, "2001:db8::/32": true, "10.1.2.3/8": true,
		"10.0.0.0": false, "10.0.0.0/33": false, "example.org": false, "": false, "::ffff:10.0.0.0/104": false,
	} {
		if _, err := (Settings{ProxyProtocolCIDRs: []string{cidr}}).proxies(); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", cidr, err, ok)
		}
	}
	d := &door{proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	for addr, want := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "11.0.0.1": false} {
		if d.trusted(tcp(addr)) != want {
			t.Errorf("%s is trusted %v, want %v", addr, !want, want)
		}
	}
	if d.trusted(&net.UnixAddr{}) {
		t.Error("a Unix socket is trusted")
	}
}

// FuzzProxyHeader: whatever a trusted proxy sends first, the source is a TCP
// address or the connection ends, and what follows a header is TLS's.
func FuzzProxyHeader(f *testing.F) {
	for _, seed := range []string{
		proxyV1, proxyV1six, "PROXY UNKNOWN\r\n", "PROXY TCP4", proxyV2(1, 0x11, v2four), proxyV2(1, 0x21, v2six), proxyV2(0, 0, nil),
		proxyV2(1, 0x31, make([]byte, 216)), proxyV2(1, 0x12, v2four), proxyV2sig, "\x16\x03\x01\x02\x00", "",
	} {
		f.Add([]byte(seed))
	}
	d, err := newDoor([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, 4096, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e := d.entrant(&sent{Reader: *bytes.NewReader(data)})
		defer e.Close()
		source, err := e.announced()
		if err != nil {
			return
		}
		if !source.IsValid() {
			t.Fatalf("%q: the source is %v", data, source)
		}
		rest, err := io.ReadAll(e)
		if err != nil {
			t.Fatalf("%q: reading on: %v", data, err)
		}
		if !bytes.HasSuffix(data, rest) {
			t.Fatalf("%q: TLS reads %q", data, rest)
		}
		if source != ratelimit.Source(netip.MustParseAddr("127.0.0.1")) && len(rest) == len(data) {
			t.Fatalf("%q: the source is %v without a header", data, source)
		}
	})
}

// sent is a connection from loopback whose other end has sent all it will. It
// has no goroutine and no clock, for the fuzzer to see the same thing twice.
type sent struct {
	net.Conn
	bytes.Reader
}

func (c *sent) Read(p []byte) (int, error)    { return c.Reader.Read(p) }
func (*sent) RemoteAddr() net.Addr            { return tcp("127.0.0.1") }
func (*sent) SetReadDeadline(time.Time) error { return nil }
func (*sent) Close() error                    { return nil }
