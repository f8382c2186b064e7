package tlspolicy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"
)

// shake hands over a pipe and return what each side says.
func shake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	server.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	client.InsecureSkipVerify = true
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() { done <- tls.Server(a, server).HandshakeContext(t.Context()) }()
	c := tls.Client(b, client)
	clientErr := c.HandshakeContext(t.Context())
	return c.ConnectionState(), <-done, clientErr
}

func TestRequirePostQuantum(t *testing.T) {
	t.Parallel()
	required := func() *tls.Config {
		cfg := &tls.Config{MinVersion: tls.VersionTLS12}
		RequirePostQuantum(cfg)
		return cfg
	}
	classical := &tls.Config{MinVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.X25519}}
	for name, tc := range map[string]struct {
		server, client *tls.Config
		ok             bool
	}{
		"both":          {required(), required(), true},
		"server alone":  {required(), &tls.Config{MinVersion: tls.VersionTLS12}, true},
		"client alone":  {&tls.Config{MinVersion: tls.VersionTLS12}, required(), true},
		"server, not c": {required(), classical.Clone(), false},
		"client, not s": {classical.Clone(), required(), false},
	} {
		state, serverErr, clientErr := shake(t, tc.server, tc.client)
		if (serverErr == nil && clientErr == nil) != tc.ok || tc.ok && (!PostQuantum(state) || state.Version != tls.VersionTLS13) {
			t.Errorf("%s: %v, %v with %v", name, serverErr, clientErr, state.CurveID)
		}
		if NoCommonKeyExchange(serverErr) == tc.ok || Refused(clientErr) == tc.ok {
			t.Errorf("%s: the causes %v and %v are not known", name, serverErr, clientErr)
		}
	}
	if cfg := required(); cfg.MinVersion != tls.VersionTLS13 {
		t.Errorf("the least version is %x", cfg.MinVersion)
	}
	if NoCommonKeyExchange(nil) || Refused(nil) {
		t.Error("no error is a refusal")
	}
}
