package bundleapi

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
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/registry/registrytest"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	other = spiffeid.RequireTrustDomainFromString("other.test")
)

// fixture is the service over a real store. Its own bundle has one X.509 and one
// JWT authority.
type fixture struct {
	*Service
	*registrytest.World
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	w := registrytest.New(t, td)
	f := &fixture{World: w, Service: New(Config{
		TrustDomain: td, Registry: w.Registry, Index: w.Index, Logger: w.Logger, Audit: audit.New(w.Logger), Fresh: w.Fresh,
		Own: func() *registry.Bundle {
			b, _ := w.Index.Bundle(td)
			return b
		},
	})}
	own, err := registry.BundleFromWire(wireBundle(t, td.Name(), 1))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Registry.UpdateBundle(t.Context(), td, func(b *registry.Bundle) error {
		*b = *own
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.fresh(t)
	return f
}

func (f *fixture) fresh(t testing.TB) {
	t.Helper()
	if err := f.cfg.Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// local is the context of a call of the local admin.
func local(t testing.TB) context.Context {
	return policy.NewContext(t.Context(), policy.Caller{Roles: policy.Local, Peer: "uid:0"})
}

// federate registers n entries that federate with the trust domains.
func (f *fixture) federate(t testing.TB, n int, domains ...spiffeid.TrustDomain) []string {
	t.Helper()
	var batch []*registry.Entry
	for i := range n {
		batch = append(batch, &registry.Entry{
			SPIFFEID: spiffeid.RequireFromPathf(td, "/w/%d", i), ParentID: spiffeid.RequireFromPath(td, "/spire/agent/x/1"),
			Selectors: attest.NewSelectors(attest.Selector{Type: "unix", Value: "uid:1"}), FederatesWith: domains,
		})
	}
	var ids []string
	for _, r := range f.Registry.CreateEntries(t.Context(), batch) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		ids = append(ids, r.Entry.ID)
	}
	f.fresh(t)
	return ids
}

// newCert makes a certificate, DER.
func newCert(t testing.TB) []byte {
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
	return cert
}

// newKey makes a public key, PKIX.
func newKey(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pkix
}

// wireBundle is a bundle with n authorities of each kind, every field of which
// has a value of its own.
func wireBundle(t testing.TB, name string, n int) *types.Bundle {
	t.Helper()
	b := &types.Bundle{TrustDomain: name, RefreshHint: 61, SequenceNumber: 62}
	for i := range n {
		b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: newCert(t), Tainted: i%2 == 1})
		b.JwtAuthorities = append(b.JwtAuthorities, &types.JWTKey{
			KeyId: "jwt" + string(rune('a'+i)), PublicKey: newKey(t), ExpiresAt: int64(1700000000 + i), Tainted: i%2 == 0,
		})
		b.WitAuthorities = append(b.WitAuthorities, &types.WITKey{
			KeyId: "wit" + string(rune('a'+i)), PublicKey: newKey(t), ExpiresAt: int64(1800000000 + i), Tainted: i%2 == 1,
		})
	}
	return b
}

func codeOf(err error) codes.Code { return rpcerr.Status(err).Code() }
