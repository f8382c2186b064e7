package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/tlspolicy"
)

// secondCA is an authority of the trust domain that is not this server's, as
// another server of it has.
type secondCA struct {
	der    []byte
	issuer *svid.X509Issuer
	sign   func(*svid.X509Approval) *svid.X509SVID
}

func newSecondCA(t *testing.T) *secondCA {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString(testDomain)
	key := newKey(t)
	now := time.Now()
	tmpl, err := svid.CATemplate(now, now.Add(time.Hour), [16]byte{1, 2, 3}, td, pkix.Name{Organization: []string{"second"}}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(nil, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &secondCA{der: der}
	if c.issuer, err = svid.NewX509Issuer(td, []*x509.Certificate{cert}); err != nil {
		t.Fatal(err)
	}
	c.sign = func(a *svid.X509Approval) *svid.X509SVID {
		digest, opts, err := a.Take()
		if err != nil {
			t.Fatal(err)
		}
		signature, err := key.Sign(nil, digest, opts)
		if err != nil {
			t.Fatal(err)
		}
		out, err := a.Seal(signature)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	return c
}

func (c *secondCA) issue(t *testing.T, kind svid.Kind, path string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	approved, err := c.issuer.Approve(time.Now(), [16]byte{9}, svid.X509Request{
		Kind: kind, ID: spiffeid.RequireFromString("spiffe://" + testDomain + path), PublicKey: key.Public(), TTL: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: c.sign(approved).Chain, PrivateKey: key}
}

// setTrust adds the authority to the bundle, or takes it away, and waits until
// the server knows.
func (c *secondCA) setTrust(t *testing.T, r *running, change func([]registry.X509Authority) []registry.X509Authority) {
	t.Helper()
	_, err := r.inside.registry.UpdateBundle(t.Context(), r.inside.roots.td, func(b *registry.Bundle) error {
		b.X509Authorities = change(b.X509Authorities)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.inside.fresh.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (c *secondCA) trust(t *testing.T, r *running) {
	t.Helper()
	c.setTrust(t, r, func(as []registry.X509Authority) []registry.X509Authority {
		return append(as, registry.X509Authority{DER: c.der})
	})
}

func (c *secondCA) distrust(t *testing.T, r *running) {
	t.Helper()
	c.setTrust(t, r, func(as []registry.X509Authority) []registry.X509Authority {
		return slices.DeleteFunc(as, func(a registry.X509Authority) bool { return bytes.Equal(a.DER, c.der) })
	})
}

func (c *secondCA) taint(t *testing.T, r *running) {
	t.Helper()
	c.setTrust(t, r, func(as []registry.X509Authority) []registry.X509Authority {
		for i := range as {
			as[i].Tainted = as[i].Tainted || bytes.Equal(as[i].DER, c.der)
		}
		return as
	})
}

// TestS25_AuthorityTakenAway takes an authority out of the bundle while a
// certificate of it holds a connection open.
func TestS25_AuthorityTakenAway(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.AdminIDs = []string{"spiffe://example.org/admin"}
	r := start(t, cfg)
	other := newSecondCA(t)
	cert := other.issue(t, svid.Workload, "/admin")
	if err := calls["ListEntries"](t.Context(), r.dial(t, cert)); status.Code(err) != codes.Unavailable {
		t.Fatalf("before the authority is in the bundle: %v, want a refused handshake", err)
	}
	other.trust(t, r)
	conn := r.dial(t, cert)
	if err := calls["ListEntries"](t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	// Its owner must be able to come for another certificate.
	other.taint(t, r)
	if err := calls["ListEntries"](t.Context(), conn); err != nil {
		t.Errorf("of a tainted authority: %v", err)
	}
	other.distrust(t, r)
	if err := calls["ListEntries"](t.Context(), conn); status.Code(err) != codes.Unauthenticated {
		t.Errorf("open connection: %v, want Unauthenticated", err)
	}
	if err := calls["ListEntries"](t.Context(), r.dial(t, cert)); status.Code(err) != codes.Unavailable {
		t.Errorf("new connection: %v, want a refused handshake", err)
	}
}

// TestS25_AuthorityTakenAwayFromStream does the same to an agent's open stream.
func TestS25_AuthorityTakenAwayFromStream(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	other := newSecondCA(t)
	other.trust(t, r)
	cert := other.issue(t, svid.Agent, "/spire/agent/test/a")
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://example.org/spire/agent/test/a")
	if _, err := r.inside.registry.AttestAgent(t.Context(), &registry.Agent{
		ID: id, AttestationType: "test", Serial: leaf.SerialNumber.String(), NotAfter: leaf.NotAfter,
	}, "", nil); err != nil {
		t.Fatal(err)
	}
	var batch []*registry.Entry
	for i := range 501 { // Beyond one page, so that the stream stays open.
		batch = append(batch, &registry.Entry{
			SPIFFEID: spiffeid.RequireFromString(fmt.Sprintf("spiffe://example.org/w/%d", i)), ParentID: id,
			Selectors: attest.NewSelectors(attest.Selector{Type: "unix", Value: "uid:1"}),
		})
	}
	for _, made := range r.inside.registry.CreateEntries(t.Context(), batch) {
		if made.Err != nil {
			t.Fatal(made.Err)
		}
	}
	stream, err := entryv1.NewEntryClient(r.dial(t, cert)).SyncAuthorizedEntries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&entryv1.SyncAuthorizedEntriesRequest{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	other.distrust(t, r)
	_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: []string{"x"}})
	if resp, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("open stream: %v, %v, want Unauthenticated", resp, err)
	}
}

// TestS04_NoResumption tries to resume sessions, in each version and with two
// implementations of TLS; the handshake must be a full one every time, in which
// the client's certificate is verified anew.
func TestS04_NoResumption(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.TLSMinVersion = "1.2"
	r := start(t, cfg)
	other := newSecondCA(t)
	other.trust(t, r)
	cert := other.issue(t, svid.Workload, "/client")

	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		client := r.clientTLS(t, cert)
		client.MinVersion, client.MaxVersion = version, version
		client.NextProtos = []string{"h2"}
		client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		client.ServerName = "server"
		for i := range 3 {
			state, err := handshake(r, client)
			if err != nil || state.DidResume || state.Version != version {
				t.Errorf("%s, handshake %d: resumed %v, version %x, %v", name, i, state.DidResume, state.Version, err)
			}
		}
	}
	t.Run("openssl", func(t *testing.T) { openSSLResumes(t, r, cert) })

	other.distrust(t, r)
	client := r.clientTLS(t, cert)
	client.NextProtos = []string{"h2"}
	if _, err := handshake(r, client); err == nil {
		t.Error("a session of a certificate that is not trusted any more was let in")
	}
}

// handshake connects, and reads until the server has said what it thinks of the
// client's certificate.
func handshake(r *running, cfg *tls.Config) (tls.ConnectionState, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: cfg}
	raw, err := d.Dial("tcp", r.Address.String())
	if err != nil {
		return tls.ConnectionState{}, err
	}
	conn, ok := raw.(*tls.Conn)
	if !ok {
		return tls.ConnectionState{}, errors.New("not a TLS connection")
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return tls.ConnectionState{}, err
	}
	// The server begins with its settings; session tickets would come before.
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil {
		return tls.ConnectionState{}, err
	}
	return conn.ConnectionState(), nil
}

// openSSLResumes asks OpenSSL, which speaks psk_dhe_ke as BoringSSL does, to
// connect again and again with the session of the first connection.
func openSSLResumes(t *testing.T, r *running, cert *tls.Certificate) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, certFile, "CERTIFICATE", cert.Certificate[0])
	writePEM(t, keyFile, "PRIVATE KEY", key)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		session := filepath.Join(dir, "session"+version)
		run := func(args ...string) string {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			args = append([]string{"s_client", "-connect", r.Address.String(), "-alpn", "h2", "-cert", certFile, "-key", keyFile, version}, args...)
			cmd := exec.CommandContext(ctx, openssl, args...)
			cmd.Stdin = strings.NewReader("")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("openssl %v: %v\n%s", args, err, out)
			}
			return string(out)
		}
		first := run("-sess_out", session)
		if !strings.Contains(first, "New, TLSv1.") {
			t.Errorf("%s: no handshake:\n%s", version, first)
		}
		if _, err := os.Stat(session); err != nil {
			continue // There was nothing to resume.
		}
		if again := run("-sess_in", session); strings.Contains(again, "Reused") {
			t.Errorf("%s: the session was resumed:\n%s", version, again)
		}
	}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestS17_VersionsOfTLS holds the TLS listener to its least version; the other
// listeners speak no TLS.
func TestS17_VersionsOfTLS(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		setting string
		served  []uint16
	}{
		{"", []uint16{tls.VersionTLS13}},
		{"1.3", []uint16{tls.VersionTLS13}},
		{"1.2", []uint16{tls.VersionTLS12, tls.VersionTLS13}},
	} {
		t.Run("tls_min_version "+tc.setting, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			cfg.Server.TLSMinVersion = tc.setting
			r := start(t, cfg)
			for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
				client := r.clientTLS(t, nil)
				client.NextProtos = []string{"h2"}
				client.MinVersion, client.MaxVersion = v, v
				_, err := handshake(r, client)
				if served := slices.Contains(tc.served, v); served != (err == nil) {
					t.Errorf("version %x: %v, want served %v", v, err, served)
				}
			}
		})
	}
}

func TestRequirePQKEM(t *testing.T) {
	t.Parallel()
	classical := []tls.CurveID{tls.X25519, tls.CurveP256}
	for name, tc := range map[string]struct {
		required bool
		offered  []tls.CurveID // nil: what Go offers
		want     tls.CurveID   // 0: refused
	}{
		"preferred":                 {false, nil, tls.X25519MLKEM768},
		"not required":              {false, classical, tls.X25519},
		"required":                  {true, nil, tls.X25519MLKEM768},
		"required, this one only":   {true, []tls.CurveID{tls.X25519MLKEM768}, tls.X25519MLKEM768},
		"required, P-256's":         {true, []tls.CurveID{tls.SecP256r1MLKEM768}, tls.SecP256r1MLKEM768},
		"required, P-384's":         {true, []tls.CurveID{tls.SecP384r1MLKEM1024}, tls.SecP384r1MLKEM1024},
		"required, among others":    {true, []tls.CurveID{tls.X25519, tls.X25519MLKEM768}, tls.X25519MLKEM768},
		"required and not offered":  {true, classical, 0},
		"required, with TLS 1.2 on": {true, nil, tls.X25519MLKEM768},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			cfg.Server.Experimental.RequirePQKEM = tc.required
			cfg.Server.TLSMinVersion = "1.2"
			r := start(t, cfg)
			client := r.clientTLS(t, nil)
			client.NextProtos, client.CurvePreferences = []string{"h2"}, tc.offered
			state, err := handshake(r, client)
			if (err == nil) != (tc.want != 0) || state.CurveID != tc.want {
				t.Fatalf("%v by %v, want %v", err, state.CurveID, tc.want)
			}
			if tc.want == 0 {
				if !tlspolicy.Refused(err) {
					t.Errorf("a client does not know its refusal: %v", err)
				}
				soon(t, "the operator is told", func(context.Context) bool { return strings.Contains(r.log.String(), "experimental.require_pq_kem") })
			}
			if !tc.required {
				return
			}
			old := r.clientTLS(t, nil)
			old.NextProtos, old.MaxVersion = []string{"h2"}, tls.VersionTLS12
			if _, err := handshake(r, old); err == nil {
				t.Error("TLS 1.2, which has no such key exchange, is served")
			}
		})
	}
}

// TestOwnSVIDRotates lives through many of the server's own SVIDs with one open
// stream, and with new connections all the time.
func TestOwnSVIDRotates(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.DefaultX509SVIDTTL = 4 * time.Second
	cfg.Server.AgentTTL = time.Hour
	r := start(t, cfg)
	agent := r.attest(t)
	stream, err := entryv1.NewEntryClient(agent.conn).SyncAuthorizedEntries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client := r.clientTLS(t, nil)
	client.NextProtos = []string{"h2"}
	client.VerifyConnection = nil // It asks at the end of a handshake, which may take long.
	serials := make(map[string]bool)
	soon(t, "the third certificate is shown", func(context.Context) bool {
		begin := time.Now()
		state, err := handshake(r, client)
		if err != nil {
			t.Fatal(err)
		}
		leaf := state.PeerCertificates[0]
		serials[leaf.SerialNumber.String()] = true
		if left := leaf.NotAfter.Sub(begin); left <= 0 {
			t.Errorf("the server shows a certificate that ended %v before", -left)
		}
		return len(serials) == 3
	})
	if err := stream.Send(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: &types.EntryMask{RevisionNumber: true}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Errorf("the stream that was open all the time: %v", err)
	}
}
