package authorityapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/authorityapi"
)

// noUpstream is what is said of an authority that is not there, or our own.
const noUpstream = "upstream authority is not configured: no authority of another server in the bundle has this subject key ID, and those of this server are for TaintX509Authority and RevokeX509Authority"

// TestForeignAuthority: an authority that another server left in the bundle can
// be tainted, and then removed; this server's own cannot, by these calls.
func TestForeignAuthority(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	update := func(ctx context.Context, change func(*registry.Bundle) error) (*registry.Bundle, error) {
		return w.Registry.UpdateBundle(ctx, w.TrustDomain, change)
	}
	s := authorityapi.New(authorityapi.Config{
		Authority: w.Authority, Fresh: func(context.Context) error { return nil }, UpdateBundle: update,
		Agent: w.Index.Agent, Logger: slog.New(slog.DiscardHandler),
	})
	foreign := foreignCA(t)
	id := hex.EncodeToString(foreign.SubjectKeyId)
	if _, err := update(t.Context(), func(b *registry.Bundle) error {
		b.X509Authorities = append(b.X509Authorities, registry.X509Authority{DER: foreign.Raw})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	taint := func(id string) error {
		r, err := s.TaintX509UpstreamAuthority(t.Context(), &localauthorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: id})
		if err == nil && r.GetUpstreamAuthoritySubjectKeyId() != strings.ToLower(id) {
			t.Errorf("tainted %s, want %s", r.GetUpstreamAuthoritySubjectKeyId(), id)
		}
		return err
	}
	revoke := func(id string) error {
		_, err := s.RevokeX509UpstreamAuthority(t.Context(), &localauthorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: id})
		return err
	}
	// bundle is the state of the foreign authority, and how many others there are.
	bundle := func() (there, tainted bool, others int) {
		b, err := w.Registry.LoadBundle(t.Context(), w.TrustDomain)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range b.X509Authorities {
			if string(a.DER) == string(foreign.Raw) {
				there, tainted = true, a.Tainted
			} else {
				others++
			}
			if string(a.DER) != string(foreign.Raw) && a.Tainted {
				t.Error("another authority is tainted")
			}
		}
		return there, tainted, others
	}
	_, _, others := bundle()

	own := w.Authority.X509().State()[0].ID
	for _, id := range []string{own, "ab", ""} {
		wantStatus(t, "taint "+id, taint(id), codes.FailedPrecondition, noUpstream)
		wantStatus(t, "revoke "+id, revoke(id), codes.FailedPrecondition, noUpstream)
	}
	wantStatus(t, "revoke untainted", revoke(id), codes.Internal, "failed to revoke X.509 upstream authority: it is not possible to revoke an untainted root CA")
	if err := taint(strings.ToUpper(id)); err != nil {
		t.Fatal(err)
	}
	if there, tainted, n := bundle(); !there || !tainted || n != others {
		t.Errorf("tainted: there %v, tainted %v, %d others", there, tainted, n)
	}
	wantStatus(t, "taint again", taint(id), codes.Internal, "failed to taint upstream authority: root CA is already tainted")
	if err := revoke(id); err != nil {
		t.Fatal(err)
	}
	if there, _, n := bundle(); there || n != others {
		t.Errorf("revoked: there %v, %d others", there, n)
	}
	wantStatus(t, "revoke again", revoke(id), codes.FailedPrecondition, noUpstream)
}

// TestForeignAuthorityIsItsKey: a root that was renewed has the key of the one
// before. Both are tainted, and both go: the key is what is not trusted.
func TestForeignAuthorityIsItsKey(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	update := func(ctx context.Context, change func(*registry.Bundle) error) (*registry.Bundle, error) {
		return w.Registry.UpdateBundle(ctx, w.TrustDomain, change)
	}
	s := authorityapi.New(authorityapi.Config{
		Authority: w.Authority, Fresh: func(context.Context) error { return nil }, UpdateBundle: update,
		Agent: w.Index.Agent, Logger: slog.New(slog.DiscardHandler),
	})
	key := newKey(t)
	certs := []*x509.Certificate{caOf(t, key, 1), caOf(t, key, 2), foreignCA(t)}
	b, err := update(t.Context(), func(b *registry.Bundle) error {
		for _, c := range certs {
			b.X509Authorities = append(b.X509Authorities, registry.X509Authority{DER: c.Raw})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := len(b.X509Authorities)
	id := hex.EncodeToString(certs[0].SubjectKeyId)
	if _, err := s.TaintX509UpstreamAuthority(t.Context(), &localauthorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: id}); err != nil {
		t.Fatal(err)
	}
	if b, err = w.Registry.LoadBundle(t.Context(), w.TrustDomain); err != nil {
		t.Fatal(err)
	}
	tainted := 0
	for _, a := range b.X509Authorities {
		if a.Tainted {
			tainted++
		}
	}
	if tainted != 2 {
		t.Errorf("%d are tainted, want both of the key", tainted)
	}
	if _, err := s.RevokeX509UpstreamAuthority(t.Context(), &localauthorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: id}); err != nil {
		t.Fatal(err)
	}
	if b, err = w.Registry.LoadBundle(t.Context(), w.TrustDomain); err != nil {
		t.Fatal(err)
	}
	for _, a := range b.X509Authorities {
		if string(a.DER) == string(certs[0].Raw) || string(a.DER) == string(certs[1].Raw) || a.Tainted {
			t.Error("one of the key's certificates is still in the bundle")
		}
	}
	if n := len(b.X509Authorities); n != before-2 {
		t.Errorf("%d authorities, want %d", n, before-2)
	}
}

func foreignCA(t *testing.T) *x509.Certificate {
	t.Helper()
	return caOf(t, newKey(t), 1)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func caOf(t *testing.T, key *ecdsa.PrivateKey, serial int64) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
