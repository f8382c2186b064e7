package svidapi_test

import (
	"crypto/x509"
	"log/slog"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/policy"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"

	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/svidapi"
)

// These measure the handlers alone: what gRPC adds to a call is the same for
// every server (performance.md: 26 to 60 µs). CPU is steadier than time.

// measure runs f as a benchmark of n SVIDs each and reports the CPU of one.
func measure(b *testing.B, n int, f func() error) {
	b.Helper()
	b.ReportAllocs()
	begin := cpu(b)
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu(b)-begin)/float64(b.N*n), "cpu-ns/svid")
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func service(f *fleet) *svidapi.Service {
	return svidapi.New(svidapi.Config{
		TrustDomain: f.TrustDomain, Graph: f.Graph, Issuer: f.Authority, Logger: slog.New(slog.DiscardHandler),
	})
}

func BenchmarkMintX509(b *testing.B) {
	f := newFleet(b)
	s := service(f)
	req := &svidv1.MintX509SVIDRequest{
		Csr: apitest.CSR(b, apitest.NewKey(b), x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org/db")}}),
	}
	measure(b, 1, func() error {
		_, err := s.MintX509SVID(b.Context(), req)
		return err
	})
}

func BenchmarkMintJWT(b *testing.B) {
	f := newFleet(b)
	s := service(f)
	req := &svidv1.MintJWTSVIDRequest{Id: wire("/db"), Audience: []string{"a"}}
	measure(b, 1, func() error {
		_, err := s.MintJWTSVID(b.Context(), req)
		return err
	})
}

func BenchmarkBatchNewX509(b *testing.B) {
	f := newFleet(b)
	s := service(f)
	ctx := policy.NewContext(b.Context(), policy.Caller{Roles: policy.Agent, ID: f.one.ID})
	req := &svidv1.BatchNewX509SVIDRequest{}
	for range 50 {
		req.Params = append(req.Params, &svidv1.NewX509SVIDParams{
			EntryId: f.mine.ID, Csr: apitest.CSR(b, apitest.NewKey(b), x509.CertificateRequest{}),
		})
	}
	measure(b, 50, func() error {
		_, err := s.BatchNewX509SVID(ctx, req)
		return err
	})
}
