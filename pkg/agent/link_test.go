package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/credence-id/credence/pkg/tlspolicy"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// serveTLS is a server with a certificate, and what its clients' handshakes came
// to.
func serveTLS(t *testing.T, curves []tls.CurveID) (host string, states <-chan tls.ConnectionState) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{spiffeid.RequireFromPath(testTD, "/spire/server").URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan tls.ConnectionState, 16)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: curves,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		VerifyConnection: func(s tls.ConnectionState) error {
			seen <- s
			return nil
		},
	})))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String(), seen
}

func TestRequirePQKEM(t *testing.T) {
	t.Parallel()
	classical := []tls.CurveID{tls.X25519, tls.CurveP256}
	for name, tc := range map[string]struct {
		required bool
		server   []tls.CurveID // nil: what Go offers
		want     tls.CurveID   // 0: refused
	}{
		"preferred":            {false, nil, tls.X25519MLKEM768},
		"not required":         {false, classical, tls.X25519},
		"required":             {true, nil, tls.X25519MLKEM768},
		"required, that alone": {true, []tls.CurveID{tls.X25519MLKEM768}, tls.X25519MLKEM768},
		"required and not had": {true, classical, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, states := serveTLS(t, tc.server)
			a := &Agent{config: &Config{}, route: route.New(route.Config{Addresses: []string{addr}})}
			a.config.Agent.Experimental.RequirePQKEM = tc.required
			conn, err := a.route.Connect(t.Context(), func() route.Security {
				v := &verifier{check: func([][]byte, [][]*x509.Certificate) error { return nil }}
				a.setTLS(v, nil)
				return v
			})
			if tc.want == 0 {
				if err == nil || !strings.Contains(err.Error(), "agent.experimental.require_pq_kem is set") {
					t.Errorf("a server without: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			}()
			if got := <-states; got.CurveID != tc.want || tlspolicy.PostQuantum(got) != (tc.want != tls.X25519) {
				t.Errorf("key exchange %v, want %v", got.CurveID, tc.want)
			}
		})
	}
}

func TestSocketLimits(t *testing.T) {
	t.Parallel()
	for files, want := range map[int]int{64: 16, 1024: 179, 4096: 793, 1 << 20: maxConnections} {
		if got := socketLimits(files).Connections; got != want {
			t.Errorf("%d files: %d connections, want %d", files, got, want)
		}
	}
	for key, r := range map[string]RateLimit{
		"":                   {FetchX509SVID: 1},
		"fetch_x509_svid":    {FetchX509SVID: -1},
		"fetch_jwt_svid":     {FetchJWTSVID: -1},
		"fetch_x509_bundles": {FetchX509Bundles: -1},
		"fetch_jwt_bundles":  {FetchJWTBundles: -1},
		"stream_secrets":     {StreamSecrets: -1},
		"fetch_secrets":      {FetchSecrets: -1},
	} {
		if got := r.negative(); got != key {
			t.Errorf("%+v: %q, want %q", r, got, key)
		}
	}
}
