package debugapi

import (
	"context"
	"crypto/x509"
	"math"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Config of a Service. All fields are required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Index       *registry.Index
	// Own is this trust domain's bundle as this server knows it; nil before it
	// does.
	Own func() *registry.Bundle
	// SVID is the chain of the server's own X509-SVID, leaf first.
	SVID func() []*x509.Certificate
	// Started is when the server began.
	Started time.Time
}

// Service is debug.v1. Who may call was decided before.
type Service struct {
	debugv1.UnsafeDebugServer
	cfg Config
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// GetInfo counts what this server knows of, now. As with SPIRE the bundle of the
// server's own trust domain is counted too.
func (s *Service) GetInfo(context.Context, *debugv1.GetInfoRequest) (*debugv1.GetInfoResponse, error) {
	now := time.Now()
	chain, err := s.chain(now)
	if err != nil {
		return nil, err
	}
	return &debugv1.GetInfoResponse{
		SvidChain:             chain,
		Uptime:                clamp(int(now.Sub(s.cfg.Started).Seconds())),
		AgentsCount:           clamp(s.cfg.Index.CountAgents(registry.AgentFilter{})),
		EntriesCount:          clamp(s.cfg.Index.CountEntries(registry.EntryFilter{}, now)),
		FederatedBundlesCount: clamp(len(s.cfg.Index.Bundles())),
	}, nil
}

// chain is the server's X509-SVID up to the authority that it verifies with.
func (s *Service) chain(now time.Time) ([]*debugv1.GetInfoResponse_Cert, error) {
	b := s.cfg.Own()
	if b == nil {
		return nil, rpcerr.New(codes.NotFound, "trust domain bundle not found")
	}
	roots := x509bundle.New(s.cfg.TrustDomain)
	for _, a := range b.X509Authorities {
		cert, err := x509.ParseCertificate(a.DER)
		if err != nil {
			return nil, rpcerr.Hide(err, codes.Internal, "failed to parse bundle")
		}
		roots.AddX509Authority(cert)
	}
	_, paths, err := x509svid.Verify(s.cfg.SVID(), roots, x509svid.WithTime(now))
	if err != nil {
		return nil, rpcerr.New(codes.Internal, "failed verification against bundle: %v", err)
	}
	var out []*debugv1.GetInfoResponse_Cert
	for _, cert := range paths[0] {
		c := &debugv1.GetInfoResponse_Cert{ExpiresAt: cert.NotAfter.Unix(), Subject: cert.Subject.String()}
		if id, err := x509svid.IDFromCert(cert); err == nil {
			c.Id = &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
		}
		out = append(out, c)
	}
	return out, nil
}

func clamp(n int) int32 { return int32(max(0, min(n, math.MaxInt32))) }
