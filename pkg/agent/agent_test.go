package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/diskkey"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var testTD = spiffeid.RequireTrustDomainFromString("example.org")

// authority signs agents' SVIDs in these tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, notAfter time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: notAfter.Add(-24 * time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{testTD.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) issue(csrDER []byte, path string) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{spiffeid.RequireFromPath(testTD, path).URL()},
	}
	return x509.CreateCertificate(rand.Reader, tmpl, a.cert, csr.PublicKey, a.key)
}

// attestation answers AttestAgent as a server would, on a client connection.
type attestation struct {
	grpc.ClientConnInterface
	a       *authority
	replies []func(csr []byte) (*agentv1.AttestAgentResponse, error)
	csrs    [][]byte
}

func (s *attestation) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &attestationStream{server: s, ctx: ctx}, nil
}

type attestationStream struct {
	grpc.ClientStream
	server *attestation
	ctx    context.Context
	last   *agentv1.AttestAgentRequest
}

func (s *attestationStream) Context() context.Context { return s.ctx }

func (s *attestationStream) SendMsg(m any) error {
	s.last = m.(*agentv1.AttestAgentRequest)
	return nil
}

func (s *attestationStream) RecvMsg(m any) error {
	csr := s.last.GetParams().GetParams().GetCsr()
	s.server.csrs = append(s.server.csrs, csr)
	reply := s.server.replies[0]
	s.server.replies = s.server.replies[1:]
	resp, err := reply(csr)
	if err != nil {
		return err
	}
	m.(*agentv1.AttestAgentResponse).Step = resp.GetStep()
	return nil
}

// once is a prover with one message.
type once struct{}

func (once) Name() string { return "join_token" }

func (once) Prove(ctx context.Context, c node.Conversation) error {
	_, err := c.Challenge(ctx, []byte("token"))
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func publicKey(t *testing.T, csr []byte) *ecdsa.PublicKey {
	t.Helper()
	c, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	return c.PublicKey.(*ecdsa.PublicKey)
}

func TestS03_LostReplyIsTriedAgainWithTheSameKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newAuthority(t, time.Now().Add(time.Hour))
	lost := func([]byte) (*agentv1.AttestAgentResponse, error) {
		return nil, status.Error(codes.Unavailable, "the reply was lost")
	}
	granted := func(csr []byte) (*agentv1.AttestAgentResponse, error) {
		der, err := a.issue(csr, "/spire/agent/join_token/token")
		if err != nil {
			return nil, err
		}
		return &agentv1.AttestAgentResponse{Step: &agentv1.AttestAgentResponse_Result_{Result: &agentv1.AttestAgentResponse_Result{
			Svid: &types.X509SVID{CertChain: [][]byte{der}},
		}}}, nil
	}
	server := &attestation{a: a, replies: []func([]byte) (*agentv1.AttestAgentResponse, error){lost, lost, granted}}
	open := func() *identity {
		km, err := diskkey.New(filepath.Join(dir, "keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		return &identity{td: testTD, keys: km, path: filepath.Join(dir, "svid.json")}
	}
	id := open()
	if err := id.attest(t.Context(), server, once{}); status.Code(err) != codes.Unavailable {
		t.Fatalf("first attempt: %v", err)
	}
	id = open() // the agent was restarted
	for range 2 {
		_ = id.attest(t.Context(), server, once{}) // the last one counts, below
	}
	first := publicKey(t, server.csrs[0])
	for i, csr := range server.csrs {
		if !first.Equal(publicKey(t, csr)) {
			t.Errorf("attempt %d used another key, which the server would refuse", i)
		}
	}
	if id.current.Load() == nil {
		t.Fatal("not attested in the end")
	}

	// Another restart takes the SVID up; eviction forgets it and its key.
	id = open()
	if ok, err := id.load(t.Context()); err != nil || !ok {
		t.Fatalf("load: %v, %v", ok, err)
	}
	if err := id.forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.replies = append(server.replies, granted)
	if err := id.attest(t.Context(), server, once{}); err != nil {
		t.Fatal(err)
	}
	if first.Equal(publicKey(t, server.csrs[3])) {
		t.Error("the key of the evicted identity is used again")
	}
}

func TestIdentityRefusesForeignSVID(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, time.Now().Add(time.Hour))
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := newCSR(keys.Key{Signer: stranger})
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.issue(csr, "/spire/agent/join_token/x")
	if err != nil {
		t.Fatal(err)
	}
	km, err := diskkey.New(filepath.Join(t.TempDir(), "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	own, err := km.Generate(t.Context(), keySlots[0], keys.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	id := &identity{td: testTD, keys: km, path: filepath.Join(t.TempDir(), "svid.json")}
	err = id.take(&types.X509SVID{CertChain: [][]byte{der}}, own, false)
	if err == nil || id.current.Load() != nil {
		t.Errorf("took an SVID for another key: %v", err)
	}
	if _, err := os.Stat(id.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was written down: %v", err)
	}
}

func TestIdentityLoadExplainsBadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	km, err := diskkey.New(filepath.Join(dir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	id := &identity{td: testTD, keys: km, path: filepath.Join(dir, "svid.json")}
	if ok, err := id.load(t.Context()); ok || err != nil {
		t.Errorf("without a file: %v, %v", ok, err)
	}
	for _, text := range []string{"", "{", `{"certificates":[]}`, `{"certificates":["AAAA"]}`} {
		if err := os.WriteFile(id.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := id.load(t.Context()); err == nil || !strings.Contains(err.Error(), "remove the file") {
			t.Errorf("%q: %v, want an error with the next step", text, err)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	refused := func(reason types.PermissionDeniedDetails_Reason) error {
		s, err := status.New(codes.PermissionDenied, "no").WithDetails(&types.PermissionDeniedDetails{Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Errorf("following the feed: %w", s.Err())
	}
	for name, tc := range map[string]struct {
		err           error
		fatal, forget bool
	}{
		"lost":     {status.Error(codes.Unavailable, "gone"), false, false},
		"banned":   {refused(types.PermissionDeniedDetails_AGENT_BANNED), true, true},
		"evicted":  {refused(types.PermissionDeniedDetails_AGENT_NOT_ATTESTED), false, true},
		"expired":  {refused(types.PermissionDeniedDetails_AGENT_EXPIRED), false, true},
		"replaced": {refused(types.PermissionDeniedDetails_AGENT_NOT_ACTIVE), false, true},
		"to renew": {refused(types.PermissionDeniedDetails_AGENT_MUST_REATTEST), false, true},
		"plain no": {status.Error(codes.PermissionDenied, "no"), false, false},
		// SPIRE's servers give no details to an agent that attests.
		"banned in SPIRE's words": {fmt.Errorf("attesting: %w", status.Error(codes.PermissionDenied, "failed to attest: agent is banned")), true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			km, err := diskkey.New(filepath.Join(dir, "keys.json"))
			if err != nil {
				t.Fatal(err)
			}
			log := slog.New(slog.DiscardHandler)
			a := &Agent{
				log: log, identity: &identity{td: testTD, keys: km, path: filepath.Join(dir, "svid.json")},
				state: &state{path: filepath.Join(dir, "state.pb"), log: log},
			}
			if a.cache, err = cache.New(cache.Config{TrustDomain: testTD, Minter: (*minter)(a)}); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{a.identity.path, a.state.path} {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err = a.judge(t.Context(), tc.err)
			if got := errors.As(err, new(fatalError)); got != tc.fatal {
				t.Errorf("fatal: %v (%v)", got, err)
			}
			if strings.HasPrefix(name, "banned") && !errors.Is(err, ErrBanned) {
				t.Errorf("got %v, want ErrBanned", err)
			}
			_, statErr := os.Stat(a.identity.path)
			if forgotten := errors.Is(statErr, os.ErrNotExist); forgotten != tc.forget {
				t.Errorf("identity forgotten: %v", forgotten)
			}
		})
	}
}

func TestTrustUsable(t *testing.T) {
	t.Parallel()
	now := time.Now()
	old, fresh := newAuthority(t, now.Add(-time.Minute)), newAuthority(t, now.Add(time.Hour))
	tr := &trust{td: testTD}
	if tr.usable(now) {
		t.Error("usable without a bundle")
	}
	learn := func(as ...*authority) error {
		b := &types.Bundle{TrustDomain: "example.org"}
		for _, a := range as {
			b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: a.cert.Raw})
		}
		return tr.learn(b)
	}
	if err := learn(old); err != nil || tr.usable(now) {
		t.Errorf("S28: a bundle of which everything has expired must not stand in the way of bootstrapping anew (%v)", err)
	}
	if err := learn(old, fresh); err != nil || !tr.usable(now) {
		t.Errorf("not usable with a fresh authority (%v)", err)
	}
	if err := learn(); err == nil {
		t.Error("took an empty bundle")
	}
}

func TestLoadBundle(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, time.Now().Add(time.Hour))
	good := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	for name, tc := range map[string]struct {
		text, format, want string
	}{
		"pem":               {good, formatPEM, ""},
		"not pem":           {"junk", formatPEM, "no PEM block"},
		"pem of garbage":    {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", formatPEM, "malformed certificate"},
		"document":          {`{"keys":[]}`, formatSPIFFE, "no certificate"},
		"not a document":    {good, formatSPIFFE, "agent.trust_bundle_format"},
		"an empty document": {`{}`, formatSPIFFE, "agent.trust_bundle_format"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "bundle")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := loadBundle(testTD, path, tc.format)
			if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := loadBundle(testTD, filepath.Join(t.TempDir(), "none"), formatPEM); err == nil || !strings.Contains(err.Error(), "bundle show") {
		t.Errorf("missing file: %v, want the next step", err)
	}
}

func TestStateRefusesWidePermissions(t *testing.T) {
	t.Parallel()
	s := &state{path: filepath.Join(t.TempDir(), "state.pb"), log: slog.New(slog.DiscardHandler)}
	c, err := cache.New(cache.Config{TrustDomain: testTD, Minter: new(minter)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.restore(c); err != nil {
		t.Errorf("without a file: %v", err)
	}
	if err := s.write(c); err != nil {
		t.Fatal(err)
	}
	if err := s.restore(c); err != nil {
		t.Errorf("what was just written: %v", err)
	}
	if err := os.Chmod(s.path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := s.restore(c); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("group-readable: %v, want a refusal with the next step", err)
	}
}

func TestConfigValidateReportsEverything(t *testing.T) {
	t.Parallel()
	c := &Config{}
	c.SetDefaults()
	c.Agent.ServerPort = 70000
	c.Agent.TrustBundleFormat = "jwks"
	c.Agent.WorkloadX509SVIDKeyType = "ec-p521"
	c.Agent.JoinToken, c.Agent.JoinTokenFile = "a", "b"
	c.Agent.LogLevel, c.Agent.LogFormat = "loud", "xml"
	err := c.Validate()
	if err == nil {
		t.Fatal("valid")
	}
	for _, key := range []string{
		"agent.trust_domain", "agent.server_address", "agent.socket_path", "agent.server_port", "agent.trust_bundle_path",
		"agent.trust_bundle_format", "agent.workload_x509_svid_key_type", "agent.join_token_file", "agent.log_level", "agent.log_format", "plugins.KeyManager", "plugins.NodeAttestor", "plugins.WorkloadAttestor",
	} {
		if !strings.Contains(err.Error(), key+":") {
			t.Errorf("%s is not reported in:\n%v", key, err)
		}
	}
}

func TestShippedConfigurations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../conf/agent/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files (%v)", err)
	}
	for _, path := range files {
		c, err := Load(path, false)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if c.Agent.SocketPath == "" {
			c.Agent.SocketPath = "/run/x.sock" // the command line's default
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestRebootstrap(t *testing.T) {
	t.Parallel()
	start := time.Now()
	untrusted := fmt.Errorf("dialling: %w", errUntrusted)
	lost := status.Error(codes.Unavailable, "gone")
	again := &nodeSVID{reattestable: true}
	for name, tc := range map[string]struct {
		mode string
		own  *nodeSVID
		errs []error // one a minute
		want bool    // of the last
	}{
		"never":                       {rebootstrapNever, again, []error{untrusted, untrusted, untrusted}, false},
		"always, too early":           {rebootstrapAlways, nil, []error{untrusted, untrusted}, false},
		"always":                      {rebootstrapAlways, nil, []error{untrusted, untrusted, untrusted}, true},
		"always, in touch in between": {rebootstrapAlways, nil, []error{untrusted, lost, untrusted, untrusted}, false},
		"always, only lost":           {rebootstrapAlways, nil, []error{lost, lost, lost, lost}, false},
		"auto":                        {rebootstrapAuto, again, []error{untrusted, untrusted, untrusted}, true},
		"auto with a join token":      {rebootstrapAuto, &nodeSVID{}, []error{untrusted, untrusted, untrusted}, false},
		"once, then the delay again":  {rebootstrapAlways, nil, []error{untrusted, untrusted, untrusted, untrusted}, false},
	} {
		var d distrust
		var got bool
		for i, err := range tc.errs {
			got = d.rebootstrap(start.Add(time.Duration(i)*time.Minute), Section{RebootstrapMode: tc.mode, RebootstrapDelay: 2 * time.Minute}, tc.own, err)
		}
		if got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestPauseEndsBeforeTheSVID(t *testing.T) {
	t.Parallel()
	a := &Agent{identity: &identity{}}
	ends := func(in time.Duration) {
		cert := &x509.Certificate{NotAfter: time.Now().Add(in)}
		a.identity.current.Store(&nodeSVID{SVID: &x509svid.SVID{Certificates: []*x509.Certificate{cert}}})
	}
	if p := a.pause(backoffMax); p < backoffMax/2 || p > backoffMax*3/2 {
		t.Errorf("without an SVID: %v", p)
	}
	ends(4 * time.Second)
	if p := a.pause(backoffMax); p > time.Second {
		t.Errorf("4 s before the end: %v", p)
	}
	ends(-time.Hour)
	if p := a.pause(backoffMax); p > backoffFirst {
		t.Errorf("after the end: %v", p)
	}
}

// TestTokenGoesFirst: as in SPIRE, a join token is used whatever node attestor
// the file names.
func TestTokenGoesFirst(t *testing.T) {
	t.Parallel()
	c, err := Load("../../conf/agent/agent_x509pop.conf", false)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("tok\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ token, file, want string }{
		{"", "", "x509pop"}, {"tok", "", "join_token"}, {"", file, "join_token"},
	} {
		c.Agent.JoinToken, c.Agent.JoinTokenFile = tc.token, tc.file
		if p, err := newProver(c); err != nil || p.Name() != tc.want {
			t.Errorf("token %q, file %q: %v, %v, want %s", tc.token, tc.file, p, err, tc.want)
		}
	}
}
