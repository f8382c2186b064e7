package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/ratelimit"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// Rates of calls over TCP: a second, and at once. They are SPIRE's, but for the
// push stream's.
const (
	// attestRate is for attestations, by the source's address.
	attestRate = 1
	// signRate is for what is signed for one caller: X.509 certificates, those
	// of agents among them; JWT-SVIDs; WIT-SVIDs. Each has its own bucket, and
	// a batch counts its items.
	signRate = 500
	// publishRate is for authorities that one downstream publishes.
	publishRate = 500
	// statusRate is for an agent's reports of its version.
	statusRate = 10
	// feedRate is for push streams that an agent opens. It keeps one, and opens
	// another when it comes back, renews or is asked to go.
	feedRate = 10
	// longestWait is how long a call waits at most for its turn, even if its
	// own deadline is later.
	longestWait = 30 * time.Second
)

// sender is who a call is counted for: a network address, or a SPIFFE ID where
// the caller was asked for one.
type sender struct {
	source netip.Prefix
	id     spiffeid.ID
}

// limits are the rates of the TLS listener. Nil limits nothing.
type limits struct {
	methods map[string]limited
	total   *prometheus.CounterVec
	log     *slog.Logger
	// quiet keeps a flood of refusals from being a flood of log lines.
	quiet rate.Sometimes
}

// limited is the limit of one method.
type limited struct {
	*ratelimit.Limiter[sender]
	name string // for the metric
	// doing is what SPIRE's refusals begin with.
	doing string
	// bySource: the caller is nobody in particular yet.
	bySource bool
	// count is how many things a request asks for; nil: one.
	count func(req any) int
}

// newLimits makes the limits that the section ratelimit leaves on. Those of
// publishing and of status reports cannot be switched off, as with SPIRE, nor can
// that of push streams.
func newLimits(cfg RateLimit, reg prometheus.Registerer, log *slog.Logger) (*limits, error) {
	on := func(key *bool, perSecond int) *ratelimit.Limiter[sender] {
		if key != nil && !*key {
			perSecond = 0
		}
		return ratelimit.New[sender](perSecond)
	}
	certificates := on(cfg.Signing, signRate)
	publishing := ratelimit.New[sender](publishRate)
	l := &limits{
		log:   log,
		quiet: rate.Sometimes{First: 1, Interval: time.Minute},
		methods: map[string]limited{
			agentv1.Agent_AttestAgent_FullMethodName: {
				Limiter: on(cfg.Attestation, attestRate), name: "attestation",
				doing: "rejecting request due to attest agent rate limiting", bySource: true,
			},
			agentv1.Agent_RenewAgent_FullMethodName: {
				Limiter: certificates, name: "x509_signing", doing: "rejecting request due to renew agent rate limiting",
			},
			agentv1.Agent_PostStatus_FullMethodName: {
				Limiter: ratelimit.New[sender](statusRate), name: "status", doing: "rejecting request due to post status rate limiting",
			},
			feedv1.Feed_Watch_FullMethodName: {
				Limiter: ratelimit.New[sender](feedRate), name: "feed", doing: "rejecting request due to push stream rate limiting",
			},
			svidv1.SVID_BatchNewX509SVID_FullMethodName: {
				Limiter: certificates, name: "x509_signing", doing: "rejecting request due to certificate signing rate limiting",
				count: items[*svidv1.NewX509SVIDParams],
			},
			svidv1.SVID_NewDownstreamX509CA_FullMethodName: {
				Limiter: certificates, name: "x509_signing", doing: "rejecting request due to downstream CA signing rate limit",
			},
			svidv1.SVID_NewJWTSVID_FullMethodName: {
				Limiter: on(cfg.Signing, signRate), name: "jwt_signing", doing: "rejecting request due to JWT signing request rate limiting",
			},
			svidv1.SVID_BatchNewWITSVID_FullMethodName: {
				Limiter: on(cfg.Signing, signRate), name: "wit_signing", doing: "rejecting request due to certificate signing rate limiting",
				count: items[*svidv1.NewWITSVIDParams],
			},
			bundlev1.Bundle_PublishJWTAuthority_FullMethodName: {
				Limiter: publishing, name: "publishing", doing: "rejecting request due to key publishing rate limiting",
			},
			bundlev1.Bundle_PublishWITAuthority_FullMethodName: {
				Limiter: publishing, name: "publishing", doing: "rejecting request due to key publishing rate limiting",
			},
		},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credence_server_rate_limited_total",
			Help: "Calls over a rate limit, by limit and by what came of it: delayed or refused.",
		}, []string{"limit", "outcome"}),
	}
	return l, reg.Register(l.total)
}

// items counts those of a batch.
func items[T any](req any) int {
	if batch, ok := req.(interface{ GetParams() []T }); ok {
		return len(batch.GetParams())
	}
	return 1
}

// take lets a call pass when it is its turn. A call that would have to wait too
// long is refused. Who comes through the admin's socket waits for nothing.
func (l *limits) take(ctx context.Context, method string, caller policy.Caller, req any) error {
	if l == nil {
		return nil
	}
	m, ok := l.methods[method]
	if !ok || m.PerSecond() == 0 {
		return nil
	}
	source, ok := sourceOf(ctx)
	if !ok {
		return nil
	}
	who, n := senderOf(caller, source), 1
	if m.bySource {
		who = sender{source: source}
	}
	if m.count != nil {
		n = m.count(req)
	}
	delay, err := m.Wait(ctx, who, n, longestWait)
	switch {
	case err == nil && delay == 0:
		return nil
	case err == nil:
		l.total.WithLabelValues(m.name, "delayed").Inc()
		return nil
	case !errors.Is(err, ratelimit.ErrExceeded):
		return err // The caller went away while it waited.
	}
	l.total.WithLabelValues(m.name, "refused").Inc()
	l.quiet.Do(func() {
		l.log.WarnContext(ctx, "calls are refused for their rate; this is said once a minute, credence_server_rate_limited_total counts them",
			telemetry.Method, method, telemetry.Caller, caller.String(), telemetry.PeerAddr, source.String(), telemetry.Limit, m.PerSecond())
	})
	return rpcerr.New(codes.ResourceExhausted, "%s: %v: the limit is %d a second for each %s", m.doing, err, m.PerSecond(), who.kind())
}

func senderOf(caller policy.Caller, source netip.Prefix) sender {
	if caller.ID.IsZero() {
		return sender{source: source}
	}
	return sender{id: caller.ID}
}

func (s sender) kind() string {
	if s.id.IsZero() {
		return "source address"
	}
	return "caller"
}

// sourceOf is who a call came from; false if not by TCP. Behind a trusted proxy
// it is whom the proxy names.
func sourceOf(ctx context.Context) (netip.Prefix, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Prefix{}, false
	}
	return sourceOfAddr(p.Addr)
}

func sourceOfAddr(addr net.Addr) (netip.Prefix, bool) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}, false
	}
	return ratelimit.Source(tcp.AddrPort().Addr()), true
}
