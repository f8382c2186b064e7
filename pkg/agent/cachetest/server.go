package cachetest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Server is a server in miniature. Its methods may be called concurrently.
type Server struct {
	TrustDomain spiffeid.TrustDomain

	t  testing.TB
	mu sync.Mutex
	// guarded by mu:
	down      error
	x509TTL   time.Duration
	jwtTTL    time.Duration
	revision  uint64
	entries   map[string]*feedv1.EntryVersion
	x509      []*x509Authority // the last one signs
	jwt       []*jwtAuthority  // the last one signs
	batches   []int
	jwtMinted int
	block     chan struct{}
}

type x509Authority struct {
	cert    *x509.Certificate
	key     crypto.Signer
	tainted bool
}

type jwtAuthority struct {
	id      string
	key     *ecdsa.PrivateKey
	tainted bool
}

var _ cache.Minter = (*Server)(nil)

// New returns a server with one authority of each kind, which signs for an hour
// (X.509) and for five minutes (JWT).
func New(t testing.TB, td string) *Server {
	t.Helper()
	s := &Server{
		TrustDomain: spiffeid.RequireTrustDomainFromString(td), t: t,
		x509TTL: time.Hour, jwtTTL: 5 * time.Minute, entries: map[string]*feedv1.EntryVersion{},
	}
	s.RotateX509()
	s.RotateJWT()
	return s
}

// SetTTL sets how long what is signed from now on is valid.
func (s *Server) SetTTL(x509TTL, jwtTTL time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.x509TTL, s.jwtTTL = x509TTL, jwtTTL
}

// SetDown makes every call fail with err, until it is set to nil.
func (s *Server) SetDown(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// Block makes calls wait until the returned function is called.
func (s *Server) Block() (unblock func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan struct{})
	s.block = ch
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.block == ch {
			s.block = nil
			close(ch)
		}
	}
}

// Batches are the sizes of the calls for X509-SVIDs so far.
func (s *Server) Batches() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.batches...)
}

// JWTs is the number of calls for JWT-SVIDs so far.
func (s *Server) JWTs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jwtMinted
}

// RotateX509 makes another X.509 authority, which signs from now on.
func (s *Server) RotateX509() {
	s.t.Helper()
	key := newKey(s.t)
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	ski := sha256.Sum256(pub)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(s.t), Subject: pkix.Name{CommonName: "cachetest"}, SubjectKeyId: ski[:20],
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{s.TrustDomain.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.x509 = append(s.x509, &x509Authority{cert: cert, key: key})
}

// RotateJWT makes another JWT authority, which signs from now on.
func (s *Server) RotateJWT() {
	s.t.Helper()
	key := newKey(s.t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jwt = append(s.jwt, &jwtAuthority{id: fmt.Sprintf("%s-%d", s.TrustDomain.Name(), len(s.jwt)+1), key: key})
}

// TaintX509 taints all X.509 authorities but the one that signs.
func (s *Server) TaintX509() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.x509[:len(s.x509)-1] {
		a.tainted = true
	}
}

// TaintJWT taints all JWT authorities but the one that signs.
func (s *Server) TaintJWT() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.jwt[:len(s.jwt)-1] {
		a.tainted = true
	}
}

// RevokeX509 removes all X.509 authorities but the one that signs.
func (s *Server) RevokeX509() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.x509 = s.x509[len(s.x509)-1:]
}

// Bundle is the trust domain's, as the feed sends it.
func (s *Server) Bundle() *feedv1.BundleState {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	b := &types.Bundle{TrustDomain: s.TrustDomain.Name()}
	for _, a := range s.x509 {
		b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: a.cert.Raw, Tainted: a.tainted})
	}
	for _, a := range s.jwt {
		pub, err := x509.MarshalPKIXPublicKey(a.key.Public())
		if err != nil {
			s.t.Fatal(err)
		}
		b.JwtAuthorities = append(b.JwtAuthorities, &types.JWTKey{KeyId: a.id, PublicKey: pub, Tainted: a.tainted})
	}
	return &feedv1.BundleState{Bundle: b, Revision: s.revision}
}

// Entry returns an entry with that ID and path, and selectors of type test.
func (s *Server) Entry(id, path string, values ...string) *types.Entry {
	e := &types.Entry{Id: id, SpiffeId: &types.SPIFFEID{TrustDomain: s.TrustDomain.Name(), Path: path}}
	for _, v := range values {
		e.Selectors = append(e.Selectors, &types.Selector{Type: "test", Value: v})
	}
	return e
}

// Put writes entries and returns the change.
func (s *Server) Put(entries ...*types.Entry) *feedv1.Delta {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	d := &feedv1.Delta{Revision: s.revision}
	for _, e := range entries {
		v := &feedv1.EntryVersion{Entry: proto.CloneOf(e), Revision: s.revision}
		s.entries[e.GetId()] = v
		d.Upserts = append(d.Upserts, v)
	}
	return d
}

// Remove removes entries and returns the change.
func (s *Server) Remove(ids ...string) *feedv1.Delta {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	for _, id := range ids {
		delete(s.entries, id)
	}
	return &feedv1.Delta{Revision: s.revision, Removes: ids}
}

// Full is everything, as for an agent that holds nothing.
func (s *Server) Full() *feedv1.Delta {
	bundle := s.Bundle()
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &feedv1.Delta{Revision: s.revision, Bundles: []*feedv1.BundleState{bundle}}
	for i := range uint32(feedv1.Buckets) {
		d.Resync = append(d.Resync, i)
	}
	for _, v := range s.entries {
		d.Upserts = append(d.Upserts, v)
	}
	return d
}

// Synced is where the server stands.
func (s *Server) Synced() *feedv1.Synced {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sums [feedv1.Buckets]uint64
	for id, v := range s.entries {
		sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, v.GetRevision())
	}
	return &feedv1.Synced{StoreId: "cachetest", Revision: s.revision, Digest: feedv1.Digest(&sums)}
}

// Sync makes c hold what the server has.
func (s *Server) Sync(c *cache.Cache) {
	s.t.Helper()
	if err := c.Apply(s.Full()); err != nil {
		s.t.Fatal(err)
	}
	if err := c.Synced(s.Synced()); err != nil {
		s.t.Fatal(err)
	}
}

// MintX509 is cache.Minter.
func (s *Server) MintX509(ctx context.Context, reqs []cache.X509Request) ([]cache.X509Result, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches = append(s.batches, len(reqs))
	out := make([]cache.X509Result, 0, len(reqs))
	for _, r := range reqs {
		out = append(out, s.signX509(r))
	}
	return out, nil
}

// wait is for Block, and returns the error of SetDown.
func (s *Server) wait(ctx context.Context) error {
	s.mu.Lock()
	block := s.block
	s.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

func (s *Server) signX509(r cache.X509Request) cache.X509Result {
	v := s.entries[r.EntryID]
	if v == nil {
		return cache.X509Result{Err: status.Error(codes.NotFound, "entry not found")}
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return cache.X509Result{Err: err}
	}
	ttl := s.x509TTL
	if v.GetEntry().GetX509SvidTtl() > 0 {
		ttl = time.Duration(v.GetEntry().GetX509SvidTtl()) * time.Second
	}
	now := time.Now()
	id := s.id(v)
	authority := s.x509[len(s.x509)-1]
	template := &x509.Certificate{
		SerialNumber: serial(s.t), NotBefore: now.Add(-10 * time.Second), NotAfter: now.Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id.URL()}, DNSNames: v.GetEntry().GetDnsNames(),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.cert, csr.PublicKey, authority.key)
	if err != nil {
		return cache.X509Result{Err: err}
	}
	return cache.X509Result{Chain: [][]byte{der}, ExpiresAt: template.NotAfter}
}

func (s *Server) id(v *feedv1.EntryVersion) spiffeid.ID {
	return spiffeid.RequireFromPath(s.TrustDomain, v.GetEntry().GetSpiffeId().GetPath())
}

// MintJWT is cache.Minter.
func (s *Server) MintJWT(ctx context.Context, entryID string, audience []string) (string, time.Time, time.Time, error) {
	if err := s.wait(ctx); err != nil {
		return "", time.Time{}, time.Time{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.entries[entryID]
	if v == nil {
		return "", time.Time{}, time.Time{}, status.Error(codes.NotFound, "entry not found")
	}
	s.jwtMinted++
	now := time.Now().Truncate(time.Second)
	expires := now.Add(s.jwtTTL)
	token, err := s.sign(map[string]any{
		"sub": s.id(v).String(), "aud": audience, "exp": expires.Unix(), "iat": now.Unix(), "n": s.jwtMinted,
	})
	return token, now, expires, err
}

// SignJWT signs any claims with the JWT authority.
func (s *Server) SignJWT(claims map[string]any) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	token, err := s.sign(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

func (s *Server) sign(claims map[string]any) (string, error) {
	a := s.jwt[len(s.jwt)-1]
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: a.key, KeyID: a.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(claims).Serialize()
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
