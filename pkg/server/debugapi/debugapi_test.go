package debugapi_test

import (
	"crypto/x509"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/debugapi"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/svid"
)

// newService is the service of a world, with a server's SVID.
func newService(t *testing.T, w *apitest.World, own func() *registry.Bundle) (*debugapi.Service, []*x509.Certificate) {
	t.Helper()
	id, err := spiffeid.FromPath(w.TrustDomain, "/spire/server")
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.Authority.IssueX509(t.Context(), time.Now(), svid.X509Request{Kind: svid.Server, ID: id, PublicKey: apitest.NewKey(t).Public()})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(out.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	chain := []*x509.Certificate{leaf}
	return debugapi.New(debugapi.Config{
		TrustDomain: w.TrustDomain, Index: w.Index, Own: own, Started: time.Now(),
		SVID: func() []*x509.Certificate { return chain },
	}), chain
}

func ownBundle(w *apitest.World) func() *registry.Bundle {
	return func() *registry.Bundle {
		b, _ := w.Index.Bundle(w.TrustDomain)
		return b
	}
}

// TestGetInfo has every field, each with another value.
func TestGetInfo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := apitest.New(t, apitest.Options{})
		s, chain := newService(t, w, ownBundle(w))
		agent := w.NewAgent(t, "one")
		w.NewAgent(t, "two")
		for i := range 3 {
			w.Create(t, w.Entry(t, agent.ID, fmt.Sprint("/w", i)))
		}
		for i := range 4 {
			td := spiffeid.RequireTrustDomainFromString(fmt.Sprintf("other%d.test", i))
			if _, err := w.Registry.UpdateBundle(t.Context(), td, func(b *registry.Bundle) error {
				b.RefreshHint = time.Minute
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		w.Fresh(t)
		time.Sleep(90 * time.Second)
		got, err := s.GetInfo(t.Context(), &debugv1.GetInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		root, err := x509.ParseCertificate(ownBundle(w)().X509Authorities[0].DER)
		if err != nil {
			t.Fatal(err)
		}
		want := &debugv1.GetInfoResponse{
			SvidChain: []*debugv1.GetInfoResponse_Cert{
				{Id: &types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/server"}, ExpiresAt: chain[0].NotAfter.Unix(), Subject: chain[0].Subject.String()},
				{Id: &types.SPIFFEID{TrustDomain: "example.org"}, ExpiresAt: root.NotAfter.Unix(), Subject: root.Subject.String()},
			},
			Uptime: 90, AgentsCount: 2, EntriesCount: 3,
			FederatedBundlesCount: 5, // its own is one of them, as with SPIRE
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestStatuses: what keeps the chain from being shown.
func TestStatuses(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	for name, c := range map[string]struct {
		own  *registry.Bundle
		code codes.Code
	}{
		"no bundle":    {nil, codes.NotFound},
		"damaged":      {&registry.Bundle{X509Authorities: []registry.X509Authority{{DER: []byte("x")}}}, codes.Internal},
		"another root": {&registry.Bundle{}, codes.Internal},
	} {
		s, _ := newService(t, w, func() *registry.Bundle { return c.own })
		_, err := s.GetInfo(t.Context(), &debugv1.GetInfoRequest{})
		if got := rpcerr.Status(err); got.Code() != c.code {
			t.Errorf("%s: %v", name, got)
		}
	}
}
