package cache_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/attest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// noID asks for all identities.
var noID spiffeid.ID

var errAway = status.Error(codes.Unavailable, "the server is away")

func sel(values ...string) attest.Selectors {
	var out []attest.Selector
	for _, v := range values {
		out = append(out, attest.Selector{Type: "test", Value: v})
	}
	return attest.NewSelectors(out...)
}

// newCache returns a cache that runs until the test ends.
func newCache(t testing.TB, s *cachetest.Server, edit ...func(*cache.Config)) *cache.Cache {
	t.Helper()
	c := idleCache(t, s, edit...)
	run(t, c)
	return c
}

// idleCache returns a cache that does not run.
func idleCache(t testing.TB, s *cachetest.Server, edit ...func(*cache.Config)) *cache.Cache {
	t.Helper()
	cfg := cache.Config{TrustDomain: s.TrustDomain, Minter: s, Log: slog.New(slog.DiscardHandler)}
	for _, f := range edit {
		f(&cfg)
	}
	c, err := cache.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func run(t testing.TB, c *cache.Cache) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// put writes entries on the server and has them arrive.
func put(t testing.TB, c *cache.Cache, s *cachetest.Server, entries ...*types.Entry) {
	t.Helper()
	if err := c.Apply(s.Put(entries...)); err != nil {
		t.Fatal(err)
	}
}

// await returns the grant once the workload can be served.
func await(t testing.TB, sub *cache.Subscription) *cache.Grant {
	t.Helper()
	g, err := sub.AwaitSVIDs(t.Context())
	if err != nil {
		t.Fatalf("AwaitSVIDs: %v", err)
	}
	return g
}

// fetch is what one call of a workload gets.
func fetch(ctx context.Context, c *cache.Cache, values ...string) (*cache.Grant, error) {
	sub := c.Subscribe(sel(values...))
	defer sub.Close()
	return sub.AwaitSVIDs(ctx)
}

// eventually waits for a condition on what the subscription sees.
func eventually(t testing.TB, sub *cache.Subscription, what string, ok func(*cache.Grant) bool) *cache.Grant {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		g := sub.Latest()
		if ok(g) {
			return g
		}
		select {
		case <-sub.Changed():
		case <-timeout:
			t.Fatalf("never seen: %s; last: %d identities of %d entries", what, len(g.Identities), g.Matched)
		}
	}
}

func ids(g *cache.Grant) []string {
	var out []string
	for _, i := range g.Identities {
		out = append(out, i.SPIFFEID.Path())
	}
	return out
}

// verify checks that every identity of the grant works now, by its own bundle.
func verify(t testing.TB, g *cache.Grant) {
	t.Helper()
	roots := x509.NewCertPool()
	authorities, err := x509.ParseCertificates(g.Bundle.X509Authorities)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range authorities {
		roots.AddCert(a)
	}
	for _, id := range g.Identities {
		certs, err := x509.ParseCertificates(id.X509SVID)
		if err != nil {
			t.Fatal(err)
		}
		opts := x509.VerifyOptions{Roots: roots, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if _, err := certs[0].Verify(opts); err != nil {
			t.Fatalf("%s does not verify: %v", id.SPIFFEID, err)
		}
		key, err := x509.ParsePKCS8PrivateKey(id.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		if pub, ok := certs[0].PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.(crypto.Signer).Public()) {
			t.Fatalf("%s: the key is not the certificate's", id.SPIFFEID)
		}
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}
