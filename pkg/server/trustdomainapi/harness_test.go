package trustdomainapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry/registrytest"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// fixture is the service over a real store.
type fixture struct {
	*Service
	*registrytest.World
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	w := registrytest.New(t, td)
	return &fixture{World: w, Service: New(Config{
		TrustDomain: td, Registry: w.Registry, Index: w.Index, Logger: w.Logger, Audit: audit.New(w.Logger), Fresh: w.Fresh,
	})}
}

// local is the context of a call of the local admin.
func local(t testing.TB) context.Context {
	return policy.NewContext(t.Context(), policy.Caller{Roles: policy.Local, Peer: "uid:0"})
}

func web(name, url string) *types.FederationRelationship {
	return &types.FederationRelationship{
		TrustDomain: name, BundleEndpointUrl: url,
		BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
	}
}

func spiffe(name, url, id string) *types.FederationRelationship {
	f := web(name, url)
	f.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: id}}
	return f
}

func with(f *types.FederationRelationship, b *types.Bundle) *types.FederationRelationship {
	f.TrustDomainBundle = b
	return f
}

// wireBundle has one authority of a kind, and a value in every field.
func wireBundle(t testing.TB, name string, hint int64) *types.Bundle {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &types.Bundle{
		TrustDomain: name, RefreshHint: hint, SequenceNumber: uint64(hint + 1),
		X509Authorities: []*types.X509Certificate{{Asn1: cert, Tainted: true}},
		JwtAuthorities:  []*types.JWTKey{{KeyId: "jwt", PublicKey: pkix, ExpiresAt: 1900000001, Tainted: true}},
		WitAuthorities:  []*types.WITKey{{KeyId: "wit", PublicKey: pkix, ExpiresAt: 1900000002, Tainted: true}},
	}
}

// answer is the outcome of one item, whatever the call.
type answer struct {
	code         codes.Code
	message      string
	relationship *types.FederationRelationship
}

type result interface {
	GetStatus() *types.Status
	GetFederationRelationship() *types.FederationRelationship
}

func answers[R result](t testing.TB, results []R, err error) (out []answer) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		out = append(out, answer{codes.Code(r.GetStatus().GetCode()), r.GetStatus().GetMessage(), r.GetFederationRelationship()})
	}
	return out
}

func (f *fixture) create(t testing.TB, mask *types.FederationRelationshipMask, list ...*types.FederationRelationship) []answer {
	t.Helper()
	resp, err := f.BatchCreateFederationRelationship(local(t), &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: list, OutputMask: mask,
	})
	return answers(t, resp.GetResults(), err)
}

func (f *fixture) update(t testing.TB, input, output *types.FederationRelationshipMask, list ...*types.FederationRelationship) []answer {
	t.Helper()
	resp, err := f.BatchUpdateFederationRelationship(local(t), &trustdomainv1.BatchUpdateFederationRelationshipRequest{
		FederationRelationships: list, InputMask: input, OutputMask: output,
	})
	return answers(t, resp.GetResults(), err)
}

func (f *fixture) get(t testing.TB, name string) *types.FederationRelationship {
	t.Helper()
	got, err := f.GetFederationRelationship(local(t), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: name})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func codeOf(err error) codes.Code { return rpcerr.Status(err).Code() }
