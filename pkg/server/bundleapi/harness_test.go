package bundleapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("example.org")
	other = spiffeid.RequireTrustDomainFromString("other.test")
)

// fixture is the service over a real store. Its own bundle has one X.509 and one
// JWT authority.
type fixture struct {
	*Service
	registry *registry.Registry
	index    *registry.Index
	log      *syncBuffer
	// away makes the store's head unreadable.
	away bool
	// slow makes the index late, as on a busy server.
	slow atomic.Bool
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		_ = s.Close()
	})
	r, err := registry.New(ctx, registry.Config{Store: s, TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{registry: r, index: registry.NewIndex(), log: &syncBuffer{}}
	running.Go(func() {
		err := r.Follow(ctx, func(c *registry.Commit) error {
			if f.slow.Load() {
				time.Sleep(50 * time.Millisecond)
			}
			f.index.Apply(c)
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
	})
	logger := slog.New(slog.NewTextHandler(f.log, nil))
	f.Service = New(Config{
		TrustDomain: td, Registry: r, Index: f.index, Logger: logger, Audit: audit.New(logger),
		Own: func() *registry.Bundle {
			b, _ := f.index.Bundle(td)
			return b
		},
		Fresh: func(ctx context.Context) error {
			if f.away {
				return store.ErrUnavailable
			}
			head, err := s.Head(ctx)
			if err != nil {
				return err
			}
			return f.index.WaitFor(ctx, head)
		},
	})
	own, err := registry.BundleFromWire(wireBundle(t, td.Name(), 1))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.UpdateBundle(ctx, td, func(b *registry.Bundle) error {
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
	for _, r := range f.registry.CreateEntries(t.Context(), batch) {
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
