package server

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/credence-id/credence/pkg/connlimit"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Limits of connections to the TLS listener. A source is an IPv4 address or an
// IPv6 /64.
const (
	// maxHandshakes is how many connections may be on their way to a TLS
	// session, and maxSourceHandshakes how many of one source. When there are
	// too many, the next are accepted as those end, or as they have had
	// handshakeGrace.
	maxHandshakes       = 2048
	maxSourceHandshakes = 256
	handshakeGrace      = 3 * time.Second
	// maxStrangers is how many connections without a certificate may be open,
	// maxSourceStrangers how many of one source; none for longer than
	// strangerAge. The oldest makes room for the next once it is strangerGrace
	// old.
	maxStrangers       = 2048
	maxSourceStrangers = 64
	strangerGrace      = 5 * time.Second
	strangerAge        = 2 * time.Minute
	// maxAgentConns is how many connections one agent may have, and
	// maxCallerConns another owner of a certificate, who may be many processes.
	// The newest stay.
	maxAgentConns  = 16
	maxCallerConns = 256
	// agentBytes is how many bytes of unfinished messages one connection of an
	// agent may have, callerBytes that of another. An agent's largest call has
	// 500 CSRs.
	agentBytes  = 8 << 20
	callerBytes = 32 << 20
	// proxyHeaderTimeout bounds the time to a PROXY protocol header.
	proxyHeaderTimeout = 3 * time.Second
	// endGrace is how long a connection outlives the certificate it was opened
	// with. Its calls are refused, and say why: an agent attests again on it.
	endGrace = 3 * time.Minute
	// spareFiles are the file descriptors that connections leave to others.
	spareFiles = 512
)

// door is what connections to the TLS listener pass until they are known.
type door struct {
	handshakes *connlimit.Pool[netip.Prefix]
	strangers  *connlimit.Pool[netip.Prefix]
	agents     *connlimit.Pool[spiffeid.ID]
	callers    *connlimit.Pool[spiffeid.ID]
	budgets    callerBudgets
	// proxies may name the source of a connection by a PROXY protocol header.
	proxies []netip.Prefix
	// stopping: connections have to go for no fault of theirs.
	stopping atomic.Bool

	log     *slog.Logger
	refused *prometheus.CounterVec
	quiet   map[string]*rate.Sometimes // by reason
}

// Why a connection was refused, or had to go.
const (
	becauseHandshakes       = "handshakes"
	becauseSourceHandshakes = "handshakes_of_source"
	becauseStrangers        = "strangers"
	becauseSourceStrangers  = "strangers_of_source"
	becauseCaller           = "connections_of_caller"
	becauseFiles            = "file_descriptors"
	becauseProxy            = "proxy_header"
	becauseTLS              = "tls"
	becauseKeyExchange      = "tls_key_exchange"
)

// hints are what an operator reads, once a minute for each reason.
var hints = map[string]string{
	becauseHandshakes:       "too many TLS handshakes at once: the oldest had to make room",
	becauseSourceHandshakes: "too many TLS handshakes of one source at once; if it is a load balancer, see proxy_protocol_trusted_cidrs",
	becauseStrangers:        "too many connections without a certificate: the oldest had to make room",
	becauseSourceStrangers:  "too many connections without a certificate of one source; if it is a load balancer, see proxy_protocol_trusted_cidrs",
	becauseCaller:           "too many connections with one certificate's SPIFFE ID: the oldest had to make room",
	becauseFiles:            "too many connections for this process's limit of open files (RLIMIT_NOFILE): raise it",
	becauseProxy:            "a PROXY protocol header is malformed, or came from outside of proxy_protocol_trusted_cidrs",
	becauseTLS:              "a TLS handshake failed",
	becauseKeyExchange:      "a client has no key exchange that is taken; see experimental.require_pq_kem",
}

func newDoor(proxies []netip.Prefix, files int, reg prometheus.Registerer, log *slog.Logger) (*door, error) {
	most := max(maxStrangers, files-spareFiles)
	d := &door{
		handshakes: connlimit.NewPool[netip.Prefix](connlimit.PoolConfig{Total: maxHandshakes, PerKey: maxSourceHandshakes, Grace: handshakeGrace}),
		strangers:  connlimit.NewPool[netip.Prefix](connlimit.PoolConfig{Total: maxStrangers, PerKey: maxSourceStrangers, Grace: strangerGrace}),
		agents:     connlimit.NewPool[spiffeid.ID](connlimit.PoolConfig{Total: most, PerKey: maxAgentConns, Grace: math.MaxInt64, Newest: true}),
		callers:    connlimit.NewPool[spiffeid.ID](connlimit.PoolConfig{Total: most, PerKey: maxCallerConns, Grace: math.MaxInt64, Newest: true}),
		proxies:    proxies,
		log:        log,
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credence_server_connections_refused_total",
			Help: "Connections to the TLS listener that were refused or had to make room, by reason.",
		}, []string{"reason"}),
		quiet: make(map[string]*rate.Sometimes),
	}
	for reason := range hints {
		d.quiet[reason] = &rate.Sometimes{First: 1, Interval: time.Minute}
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "credence_server_connections",
		Help: "Connections to the TLS listener that are open.",
	}, func() float64 {
		return float64(d.handshakes.Len() + d.strangers.Len() + d.agents.Len() + d.callers.Len())
	})
	return d, errors.Join(reg.Register(d.refused), reg.Register(open))
}

// refuse counts, and says what happened if nobody was told of it lately.
func (d *door) refuse(reason string, addr net.Addr, err error) {
	d.refused.WithLabelValues(reason).Inc()
	log := d.log.With(telemetry.PeerAddr, addr.String(), telemetry.Reason, hints[reason], telemetry.Err, err)
	if reason == becauseTLS { // Scanners, health checks and clients' mistakes.
		log.Debug("connection refused")
		return
	}
	d.quiet[reason].Do(func() {
		log.Warn("connection refused; this is said once a minute, credence_server_connections_refused_total counts them")
	})
}

// stop ends connections that are on their way in, which gRPC would wait for
// before it tells the others that it stops.
func (d *door) stop() {
	d.stopping.Store(true)
	d.handshakes.EvictAll()
}

// shut ends every connection.
func (d *door) shut() {
	d.stop()
	d.strangers.EvictAll()
	d.agents.EvictAll()
	d.callers.EvictAll()
}

// trusted says whether a proxy at addr may name whom it speaks for.
func (d *door) trusted(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := tcp.AddrPort().Addr().Unmap()
	for _, p := range d.proxies {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// listener wraps the TLS listener's.
func (d *door) listener(l net.Listener) net.Listener {
	return &doorListener{Listener: l, door: d, closed: make(chan struct{})}
}

type doorListener struct {
	net.Listener
	door *door

	once   sync.Once
	closed chan struct{}
}

func (l *doorListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Accept returns the next connection that may try a handshake. While too many
// do, the queue is the kernel's.
func (l *doorListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		setUserTimeout(raw, keepaliveAnswer)
		e := l.door.entrant(raw)
		for {
			err = e.enter(l.door.handshakes, e.seen, becauseHandshakes)
			if !errors.Is(err, connlimit.ErrFull) {
				break
			}
			freed, in := l.door.handshakes.Freed(time.Now())
			timer := time.NewTimer(in)
			select {
			case <-freed:
			case <-timer.C:
			case <-l.closed:
				err = net.ErrClosed
			}
			timer.Stop()
			if errors.Is(err, net.ErrClosed) {
				return nil, errors.Join(err, e.Close())
			}
		}
		if err == nil {
			return e, nil
		}
		l.door.refuse(becauseSourceHandshakes, raw.RemoteAddr(), err)
		_ = e.Close() // It was not wanted.
	}
}

// proxies parses proxy_protocol_trusted_cidrs.
func (s Settings) proxies() ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(s.ProxyProtocolCIDRs))
	for _, text := range s.ProxyProtocolCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a network such as \"10.0.0.0/8\"", text)
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q: write IPv4 networks as IPv4", text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
