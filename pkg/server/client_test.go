package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// csr asks for a key and, when an ID is given, for a name.
func csr(t testing.TB, key *ecdsa.PrivateKey, ids ...string) []byte {
	t.Helper()
	tmpl := &x509.CertificateRequest{}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// pool is what the server says is its bundle.
func (r *running) pool(t testing.TB) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	for _, a := range r.bundle(t).X509Authorities {
		cert, err := x509.ParseCertificate(a.Asn1)
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(cert)
	}
	return pool
}

func (r *running) bundle(t testing.TB) *types.Bundle {
	t.Helper()
	b, err := bundlev1.NewBundleClient(r.admin(t)).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// clientTLS verifies the server as an agent does and shows cert, if not nil.
func (r *running) clientTLS(t testing.TB, cert *tls.Certificate) *tls.Config {
	t.Helper()
	pool := r.pool(t)
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // Verified below: SPIFFE IDs are not DNS names.
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err == nil && s.PeerCertificates[0].URIs[0].String() != "spiffe://example.org/spire/server" {
				t.Errorf("the server's certificate is of %v", s.PeerCertificates[0].URIs)
			}
			return err
		},
	}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return cfg
}

// dial connects to the TLS listener.
func (r *running) dial(t testing.TB, cert *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+r.Address.String(),
		grpc.WithTransportCredentials(credentials.NewTLS(r.clientTLS(t, cert))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// testAgent is an attested agent.
type testAgent struct {
	id   spiffeid.ID
	cert tls.Certificate
	conn *grpc.ClientConn
}

// attest makes an agent by a join token, as a real one does.
func (r *running) attest(t testing.TB) *testAgent {
	t.Helper()
	token, err := agentv1.NewAgentClient(r.admin(t)).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60})
	if err != nil {
		t.Fatal(err)
	}
	return r.attestWith(t, token.Value)
}

// attestWith makes an agent by the token.
func (r *running) attestWith(t testing.TB, token string) *testAgent {
	t.Helper()
	a, err := r.attestBy(t, "join_token", []byte(token))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// attestBy makes an agent by a method that asks for nothing but a payload.
func (r *running) attestBy(t testing.TB, method string, payload []byte) (*testAgent, error) {
	t.Helper()
	key := newKey(t)
	stream, err := agentv1.NewAgentClient(r.dial(t, nil)).AttestAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: method, Payload: payload},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, key)},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	svid := resp.GetResult().GetSvid()
	id, err := spiffeid.FromString("spiffe://" + svid.GetId().GetTrustDomain() + svid.GetId().GetPath())
	if err != nil {
		t.Fatal(err)
	}
	a := &testAgent{id: id, cert: tls.Certificate{Certificate: svid.CertChain, PrivateKey: key}}
	a.conn = r.dial(t, &a.cert)
	return a, nil
}

// register makes an entry and returns its ID.
func (r *running) register(t testing.TB, e *types.Entry) string {
	t.Helper()
	if e.Selectors == nil {
		e.Selectors = []*types.Selector{{Type: "unix", Value: "uid:1000"}}
	}
	resp, err := entryv1.NewEntryClient(r.admin(t)).BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil {
		t.Fatal(err)
	}
	if s := resp.Results[0].Status; s.Code != int32(codes.OK) {
		t.Fatalf("creating an entry: %v", s)
	}
	return resp.Results[0].Entry.Id
}

// mint gets an X509-SVID for a workload by way of the admin.
func (r *running) mint(t testing.TB, path string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	resp, err := svidv1.NewSVIDClient(r.admin(t)).MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{
		Csr: csr(t, key, "spiffe://"+testDomain+path),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: resp.Svid.CertChain, PrivateKey: key}
}

// selfSigned is a certificate that nobody but its owner vouches for.
func selfSigned(t testing.TB, id spiffeid.ID) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "x"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:         []*url.URL{id.URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func wireID(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: testDomain, Path: path}
}

// patience is how long a test waits for what has to come, on a machine that has
// other things to do; what comes ends the wait.
const patience = time.Minute

// soon tries until ok says yes, or the test's patience ends.
func soon(t testing.TB, what string, ok func(ctx context.Context) bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok(t.Context()) {
			return
		}
	}
	t.Fatalf("not after %v: %s", patience, what)
}
