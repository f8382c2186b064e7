package apitest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// Local connects as the local admin. Each call is a connection of its own.
func (w *World) Local(tb testing.TB) *grpc.ClientConn {
	tb.Helper()
	return w.dial(tb, w.local, insecure.NewCredentials())
}

// Dial connects over TLS, with the certificate unless it is nil. Each call is a
// connection of its own.
func (w *World) Dial(tb testing.TB, cert *tls.Certificate, opts ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true,
	}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	return w.dial(tb, w.tls, credentials.NewTLS(cfg), opts...)
}

func (w *World) dial(tb testing.TB, l *bufconn.Listener, creds credentials.TransportCredentials, opts ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	opts = append(opts, grpc.WithTransportCredentials(creds), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return l.DialContext(ctx)
	}))
	conn, err := grpc.NewClient("passthrough:server", opts...)
	must(tb, err)
	tb.Cleanup(func() { must(tb, ignoreClosed(conn.Close())) })
	return conn
}

// ignoreClosed lets a test close a connection before its end.
func ignoreClosed(err error) error {
	if err == grpc.ErrClientConnClosing { //nolint:errorlint,staticcheck // Close returns exactly this.
		return nil
	}
	return err
}

// NewKey makes a P-256 key.
func NewKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	return key
}

// CSR makes a certificate signing request that claims what the template says.
func CSR(tb testing.TB, key crypto.Signer, template x509.CertificateRequest) []byte {
	tb.Helper()
	if template.Subject.String() == "" {
		template.Subject = pkix.Name{CommonName: "claims to be somebody"}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	must(tb, err)
	return der
}

// Agent is an attested agent.
type Agent struct {
	ID   spiffeid.ID
	Key  *ecdsa.PrivateKey
	Cert tls.Certificate
}

// NewAgent attests an agent, by way of the registry, with the selectors
// test:<name> and test:all, and waits until the server knows it.
func (w *World) NewAgent(tb testing.TB, name string) *Agent {
	tb.Helper()
	a := w.AttestedAgent(tb, name)
	w.Fresh(tb)
	return a
}

// AttestedAgent is NewAgent that does not wait.
func (w *World) AttestedAgent(tb testing.TB, name string) *Agent {
	tb.Helper()
	a := &Agent{Key: NewKey(tb)}
	var err error
	a.ID, err = spiffeid.FromPath(w.TrustDomain, "/spire/agent/test/"+name)
	must(tb, err)
	out, err := w.Authority.IssueX509(tb.Context(), time.Now(), svid.X509Request{Kind: svid.Agent, ID: a.ID, PublicKey: a.Key.Public()})
	must(tb, err)
	a.Cert = tls.Certificate{Certificate: out.Chain, PrivateKey: a.Key}
	_, err = w.Registry.AttestAgent(tb.Context(), &registry.Agent{
		ID: a.ID, AttestationType: "test", Serial: out.Serial, NotAfter: out.NotAfter,
		Selectors: attest.NewSelectors(attest.Selector{Type: "test", Value: name}, attest.Selector{Type: "test", Value: "all"}),
	}, "", nil)
	must(tb, err)
	return a
}

// RenewedAgent is the agent with its next SVID, which it has not used yet.
func (w *World) RenewedAgent(tb testing.TB, a *Agent) *Agent {
	tb.Helper()
	next := &Agent{ID: a.ID, Key: NewKey(tb)}
	out, err := w.Authority.IssueX509(tb.Context(), time.Now(), svid.X509Request{Kind: svid.Agent, ID: a.ID, PublicKey: next.Key.Public()})
	must(tb, err)
	next.Cert = tls.Certificate{Certificate: out.Chain, PrivateKey: next.Key}
	_, err = w.Registry.UpdateAgent(tb.Context(), a.ID, func(a *registry.Agent) error {
		a.Issued(out.Serial, out.NotAfter)
		return nil
	})
	must(tb, err)
	return next
}

// Create registers entries and waits until the server knows them.
func (w *World) Create(tb testing.TB, entries ...*registry.Entry) []*registry.Entry {
	tb.Helper()
	out := make([]*registry.Entry, len(entries))
	for i, r := range w.Registry.CreateEntries(tb.Context(), entries) {
		must(tb, r.Err)
		out[i] = r.Entry
	}
	must(tb, w.fresh(tb.Context()))
	return out
}

// Fresh waits until the server knows everything that was committed.
func (w *World) Fresh(tb testing.TB) {
	tb.Helper()
	must(tb, w.fresh(tb.Context()))
}

// Entry is an entry of the trust domain example.org below a parent.
func (w *World) Entry(tb testing.TB, parent spiffeid.ID, path string) *registry.Entry {
	tb.Helper()
	id, err := spiffeid.FromPath(w.TrustDomain, path)
	must(tb, err)
	return &registry.Entry{
		SPIFFEID: id, ParentID: parent, Selectors: attest.NewSelectors(attest.Selector{Type: "unix", Value: "uid:1000"}),
	}
}
