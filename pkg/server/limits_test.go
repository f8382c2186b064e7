package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/ratelimit"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

func newTestLimits(t *testing.T, cfg RateLimit) (*limits, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	l, err := newLimits(cfg, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return l, log
}

// count reads one counter of a vector.
func count(t *testing.T, v *prometheus.CounterVec, labels ...string) float64 {
	t.Helper()
	var m dto.Metric
	if err := v.WithLabelValues(labels...).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// from is the context of a call from an address.
func from(ctx context.Context, addr net.Addr) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: addr})
}

func tcp(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 4711} }

func named(path string) policy.Caller {
	return policy.Caller{Roles: policy.Agent, ID: spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(testDomain), path)}
}

// What SPIRE 1.15 limits, by how much, and by whom it is counted here. The page
// docs/limits.md has the same.
func TestRatesAreSPIREs(t *testing.T) {
	t.Parallel()
	l, _ := newTestLimits(t, RateLimit{})
	got := make(map[string]string)
	for method, m := range l.methods {
		by := "caller"
		if m.bySource {
			by = "source"
		}
		got[method[strings.LastIndex(method, ".")+1:]] = fmt.Sprintf("%s %d by %s", m.name, m.PerSecond(), by)
	}
	want := map[string]string{
		"Agent/AttestAgent":          "attestation 1 by source",
		"Agent/RenewAgent":           "x509_signing 500 by caller",
		"Agent/PostStatus":           "status 10 by caller",
		"Feed/Watch":                 "feed 10 by caller", // Ours alone.
		"SVID/BatchNewX509SVID":      "x509_signing 500 by caller",
		"SVID/NewDownstreamX509CA":   "x509_signing 500 by caller",
		"SVID/NewJWTSVID":            "jwt_signing 500 by caller",
		"SVID/BatchNewWITSVID":       "wit_signing 500 by caller",
		"Bundle/PublishJWTAuthority": "publishing 500 by caller",
		"Bundle/PublishWITAuthority": "publishing 500 by caller",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	off := new(bool)
	l, _ = newTestLimits(t, RateLimit{Attestation: off, Signing: off})
	for _, method := range slices.Sorted(maps.Keys(l.methods)) {
		always := slices.Contains([]string{"publishing", "status", "feed"}, l.methods[method].name)
		if limited := l.methods[method].PerSecond() > 0; limited != always {
			t.Errorf("%s with ratelimit off: limited %v", method, limited)
		}
	}
}

func TestTakeCountsWhoAndHowMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, log := newTestLimits(t, RateLimit{})
		batch := func(n int) *svidv1.BatchNewX509SVIDRequest {
			return &svidv1.BatchNewX509SVIDRequest{Params: make([]*svidv1.NewX509SVIDParams, n)}
		}
		const (
			attest = agentv1.Agent_AttestAgent_FullMethodName
			sign   = svidv1.SVID_BatchNewX509SVID_FullMethodName
			renew  = agentv1.Agent_RenewAgent_FullMethodName
			jwt    = svidv1.SVID_NewJWTSVID_FullMethodName
			bundle = bundlev1.Bundle_GetBundle_FullMethodName
		)
		one, two, nobody := named("/spire/agent/x/1"), named("/spire/agent/x/2"), policy.Caller{Peer: "192.0.2.7:4711"}
		for i, tc := range []struct {
			method string
			caller policy.Caller
			addr   net.Addr
			req    any
			wait   time.Duration
			code   codes.Code
			text   string
		}{
			{attest, nobody, tcp("192.0.2.7"), nil, 0, codes.OK, ""},
			{attest, nobody, tcp("192.0.2.8"), nil, 0, codes.OK, ""}, // another source
			{attest, nobody, tcp("192.0.2.7"), nil, time.Second, codes.OK, ""},
			{attest, nobody, tcp("2001:db8:1:2::1"), nil, 0, codes.OK, ""},
			{attest, nobody, tcp("2001:db8:1:2::2"), nil, time.Second, codes.OK, ""}, // the same /64
			{attest, nobody, tcp("2001:db8:1:3::2"), nil, 0, codes.OK, ""},
			{attest, nobody, &net.UnixAddr{Name: "admin"}, nil, 0, codes.OK, ""},
			{attest, nobody, &net.UnixAddr{Name: "admin"}, nil, 0, codes.OK, ""}, // as many as it likes
			// What one agent has signed, from wherever it calls.
			{sign, one, tcp("192.0.2.7"), batch(501), 0, codes.ResourceExhausted, "rejecting request due to certificate signing rate limiting: " +
				"rate limit exceeded: rate (501) exceeds burst size (500): the limit is 500 a second for each caller"},
			{sign, one, tcp("192.0.2.7"), batch(500), 0, codes.OK, ""},
			{sign, one, tcp("192.0.2.9"), batch(50), 100 * time.Millisecond, codes.OK, ""},
			{renew, one, tcp("192.0.2.7"), &agentv1.RenewAgentRequest{}, 2 * time.Millisecond, codes.OK, ""}, // of the same bucket
			{sign, two, tcp("192.0.2.7"), batch(500), 0, codes.OK, ""},
			{jwt, one, tcp("192.0.2.7"), &svidv1.NewJWTSVIDRequest{}, 0, codes.OK, ""}, // of another
			{sign, one, tcp("192.0.2.7"), batch(0), 0, codes.OK, ""},
			{bundle, nobody, tcp("192.0.2.7"), nil, 0, codes.OK, ""},
		} {
			begin := time.Now()
			err := l.take(from(t.Context(), tc.addr), tc.method, tc.caller, tc.req)
			if status.Code(err) != tc.code || err != nil && err.Error() != tc.text || time.Since(begin) != tc.wait {
				t.Errorf("call %d, %s: %v after %v, want %v after %v", i, tc.method, err, time.Since(begin), tc.code, tc.wait)
			}
		}
		for range 3 {
			if err := l.take(from(t.Context(), tcp("192.0.2.7")), sign, one, batch(501)); err == nil {
				t.Error("not refused")
			}
		}
		if n := strings.Count(log.String(), "calls are refused for their rate"); n != 1 {
			t.Errorf("said %d times in a minute:\n%s", n, log)
		}
		for outcome, want := range map[string]float64{"refused": 4, "delayed": 2} {
			if got := count(t, l.total, "x509_signing", outcome); got != want {
				t.Errorf("%v %s, want %v", got, outcome, want)
			}
		}
	})
}

// A queue for one source has an end: who would stand in it for longer than half
// a minute is told at once.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, _ := newTestLimits(t, RateLimit{})
		ctx := from(t.Context(), tcp("192.0.2.7"))
		results := make(chan error, 100)
		for range cap(results) {
			go func() { results <- l.take(ctx, agentv1.Agent_AttestAgent_FullMethodName, policy.Caller{}, nil) }()
		}
		served, refused := 0, 0
		for range cap(results) {
			switch err := <-results; {
			case err == nil:
				served++
			case status.Code(err) == codes.ResourceExhausted:
				refused++
				if !strings.Contains(err.Error(), "for each source address") {
					t.Error(err)
				}
			default:
				t.Error(err)
			}
		}
		if served != 31 || refused != 69 {
			t.Errorf("%d served, %d refused, want 31 and 69", served, refused)
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		time.Sleep(500 * time.Millisecond)
		if err := l.take(gone, agentv1.Agent_AttestAgent_FullMethodName, policy.Caller{}, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("of a caller who went away: %v", err)
		}
	})
}

// TestRateLimitsOverTLS is the same through the front door.
func TestRateLimitsOverTLS(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.RateLimit = RateLimit{}
	r := start(t, cfg)
	begin := time.Now()
	agent := r.attest(t)
	r.attest(t)
	if took := time.Since(begin); took < 900*time.Millisecond {
		t.Errorf("two attestations from one address took %v", took)
	}
	client := agentv1.NewAgentClient(r.dial(t, nil))
	soon(t, "an attestation that cannot wait is refused", func(ctx context.Context) bool {
		// A busy machine may take so long over this that it is its turn.
		r.attest(t)
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		stream, err := client.AttestAgent(ctx)
		if err != nil {
			return false
		}
		_, err = stream.Recv()
		return status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "rejecting request due to attest agent rate limiting")
	})

	entry := r.register(t, &types.Entry{ParentId: wireID(agent.id.Path()), SpiffeId: wireID("/db")})
	request := csr(t, newKey(t))
	for n, want := range map[int]codes.Code{499: codes.OK, 501: codes.ResourceExhausted} { // One second's worth in all.
		req := &svidv1.BatchNewX509SVIDRequest{}
		for range n {
			req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: entry, Csr: request})
		}
		if _, err := svidv1.NewSVIDClient(agent.conn).BatchNewX509SVID(t.Context(), req); status.Code(err) != want {
			t.Errorf("a batch of %d: %v, want %v", n, err, want)
		}
	}
}

func TestPushStreamsHaveARate(t *testing.T) {
	t.Parallel()
	agent := start(t, testConfig(t)).attest(t)
	soon(t, "one of twenty push streams at once is refused", func(ctx context.Context) bool {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		var refused atomic.Bool
		var streams sync.WaitGroup
		for range 2 * feedRate {
			streams.Go(func() {
				stream, err := feedv1.NewFeedClient(agent.conn).Watch(ctx)
				if err == nil {
					_, err = stream.Recv()
				}
				if status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "push stream rate limiting") {
					refused.Store(true)
				}
			})
		}
		streams.Wait()
		return refused.Load()
	})
}

// What a check costs each call.
func BenchmarkTake(b *testing.B) {
	l, err := newLimits(RateLimit{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	ctx, caller, req := from(b.Context(), tcp("192.0.2.7")), named("/spire/agent/x/1"), &svidv1.NewJWTSVIDRequest{}
	m := l.methods[svidv1.SVID_NewJWTSVID_FullMethodName]
	m.Limiter = ratelimit.New[sender](1 << 30)
	l.methods[svidv1.SVID_NewJWTSVID_FullMethodName] = m
	b.ReportAllocs()
	for b.Loop() {
		if err := l.take(ctx, svidv1.SVID_NewJWTSVID_FullMethodName, caller, req); err != nil {
			b.Fatal(err)
		}
	}
}
