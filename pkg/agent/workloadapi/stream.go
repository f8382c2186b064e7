package workloadapi

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/peer"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kind is what a stream sends.
type kind struct {
	method string
	form   form
	await  func(*cache.Subscription, context.Context) (*cache.Grant, error)
	// identities: there is nothing to send without one.
	identities bool
}

var (
	x509SVIDs   = kind{"FetchX509SVID", x509SVIDForm, (*cache.Subscription).AwaitSVIDs, true}
	x509Bundles = kind{"FetchX509Bundles", x509BundlesForm, (*cache.Subscription).AwaitSync, false}
	jwtBundles  = kind{"FetchJWTBundles", jwtBundlesForm, (*cache.Subscription).AwaitSync, false}
)

// FetchX509SVID streams the caller's X509-SVIDs (Workload API, 5.2.1).
func (s *Service) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return s.stream(stream, x509SVIDs)
}

// FetchX509Bundles streams X.509 bundles (Workload API, 5.2.2).
func (s *Service) FetchX509Bundles(_ *workload.X509BundlesRequest, stream workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return s.stream(stream, x509Bundles)
}

// FetchJWTBundles streams JWT bundles (Workload API, 6.2.2).
func (s *Service) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	return s.stream(stream, jwtBundles)
}

// errAgain ends a round of a stream whose caller must be attested again.
var errAgain = errors.New("the attestation is out of date")

// stream serves one stream: attest, send what the caller may have, and again
// whenever that changes, until the caller goes or has no identity any more.
func (s *Service) stream(stream grpc.ServerStream, k kind) (err error) {
	ctx := stream.Context()
	defer s.metrics.call(k.method, time.Now(), &err)
	proc, err := s.identify(ctx)
	if err != nil {
		return err
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	f := &follower{Service: s, kind: k, stream: stream, proc: proc, first: true}
	for {
		if err := f.round(ctx); !errors.Is(err, errAgain) {
			return err
		}
	}
}

// follower is one stream.
type follower struct {
	*Service
	kind
	stream grpc.ServerStream
	proc   *peer.Process
	sent   []byte // the last message
	first  bool   // round
}

// round is the part of a stream that rests on one attestation.
func (f *follower) round(ctx context.Context) error {
	selectors, invalidated, err := f.attest(ctx, f.proc)
	if err != nil {
		return err
	}
	if f.first {
		if err := f.allow(f.method, selectors); err != nil {
			return err
		}
		f.first = false
	}
	sub := f.cfg.Cache.Subscribe(selectors)
	defer sub.Close()
	grant, err := f.await(sub, ctx)
	if err != nil && (f.identities || !f.cfg.AllowUnauthenticatedVerifiers || !hasBundle(grant)) {
		return f.refusal(ctx, f.method, f.proc, err)
	}
	for {
		if err := f.send(ctx, grant); err != nil {
			return err
		}
		select {
		case <-sub.Changed():
			grant = sub.Latest()
		case <-invalidated:
			return errAgain
		case <-f.proc.Done():
			return status.Error(codes.Unavailable, "the process that opened the stream is gone")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// hasBundle says whether a verifier that needs no identity can be served.
func hasBundle(g *cache.Grant) bool { return g != nil && g.Bundle != nil }

// send sends the grant, unless the caller has all of it already.
func (f *follower) send(ctx context.Context, g *cache.Grant) error {
	switch {
	case g.Matched == 0 && (f.identities || !f.cfg.AllowUnauthenticatedVerifiers):
		return f.refusal(ctx, f.method, f.proc, cache.ErrNoIdentity)
	case g.Bundle == nil && f.sent == nil:
		return f.refusal(ctx, f.method, f.proc, cache.ErrUnavailable)
	case g.Bundle == nil, f.identities && len(g.Identities) == 0:
		return nil // what was sent has ended, and what follows is on its way
	}
	data, err := g.Encoded(f.form, f.form.encode)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if f.sent != nil && bytes.Equal(f.sent, data) {
		return nil
	}
	// The first message follows an attestation and its check.
	if f.sent != nil {
		if err := f.check(ctx, f.proc); err != nil {
			return err
		}
	}
	if err := f.stream.SendMsg(encoded(data)); err != nil {
		return err
	}
	f.sent = data
	f.log.DebugContext(ctx, "sent", telemetry.Method, f.method, telemetry.PeerPID, f.proc.PID(), telemetry.Count, len(g.Identities), telemetry.Bytes, len(data))
	return nil
}
