package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/attest/node/x509pop"
)

// withX509POP is testConfig with the section of a file.
func withX509POP(t *testing.T, data string) Config {
	t.Helper()
	return withPlugins(t, "NodeAttestor \"x509pop\" { plugin_data {\n"+data+"\n} }")
}

// withPlugins is testConfig with sections of a file.
func withPlugins(t *testing.T, sections string) Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "server.conf")
	text := "plugins {\n\tKeyManager \"memory\" {}\n" + sections + "\n}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(file, false)
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t)
	cfg.Plugins = loaded.Plugins
	return cfg
}

func writeBlock(t *testing.T, kind string, ders ...[]byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), strings.ReplaceAll(kind, " ", "-")+".pem")
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// machineCert is a self-signed certificate, which is its own authority.
func machineCert(t *testing.T, key *ecdsa.PrivateKey, ips ...net.IP) []byte {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "m7"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IPAddresses: ips,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// talk is node.Conversation over a stream.
type talk struct {
	stream agentv1.Agent_AttestAgentClient
	csr    []byte
	begun  bool
	result *agentv1.AttestAgentResponse_Result
}

func (c *talk) Challenge(_ context.Context, message []byte) ([]byte, error) {
	req := &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: message}}
	if !c.begun {
		c.begun = true
		req.Step = &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: x509pop.Name, Payload: message},
			Params: &agentv1.AgentX509SVIDParams{Csr: c.csr},
		}}
	}
	if err := c.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	resp, err := c.stream.Recv()
	if err != nil {
		return nil, err
	}
	if c.result = resp.GetResult(); c.result != nil {
		return nil, io.EOF
	}
	return resp.GetChallenge(), nil
}

// attestX509POP attests over the connection with the certificates and their key.
func attestX509POP(t *testing.T, conn *grpc.ClientConn, key *ecdsa.PrivateKey, chain ...[]byte) (*types.SPIFFEID, error) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &talk{stream: stream, csr: csr(t, newKey(t))}
	err = x509pop.NewProver(x509pop.ProverConfig{
		PrivateKeyPath: writeBlock(t, "PRIVATE KEY", der), CertificatePath: writeBlock(t, "CERTIFICATE", chain...),
	}).Prove(t.Context(), c)
	return c.result.GetSvid().GetId(), err
}

// TestX509POPAddress: with verify_client_ip, an agent comes from an address of its
// certificate; behind a trusted proxy, from the one that the proxy tells.
func TestX509POPAddress(t *testing.T) {
	t.Parallel()
	here, there := net.ParseIP("127.0.0.1"), net.ParseIP("192.0.2.7")
	for name, tc := range map[string]struct {
		in     net.IP
		proxy  []string
		accept bool
	}{
		"its own":             {here, nil, true},
		"another's":           {there, nil, false},
		"told by the proxy":   {there, []string{proxyV1}, true},
		"the proxy's":         {here, []string{proxyV1}, false},
		"another by IPv6":     {there, []string{proxyV1six}, false},
		"no address in there": {nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := newKey(t)
			var ips []net.IP
			if tc.in != nil {
				ips = append(ips, tc.in)
			}
			der := machineCert(t, key, ips...)
			cfg := withX509POP(t, fmt.Sprintf("ca_bundle_path = %q\nverify_client_ip = true", writeBlock(t, "CERTIFICATE", der)))
			cfg.Server.ProxyProtocolCIDRs = []string{"127.0.0.0/8"}
			r := start(t, cfg)
			id, err := attestX509POP(t, r.dialVia(t, tc.proxy...), key, der)
			if tc.accept && (err != nil || !strings.HasPrefix(id.GetPath(), "/spire/agent/x509pop/")) {
				t.Errorf("agent %v, error %v", id, err)
			}
			if !tc.accept && status.Code(err) != codes.PermissionDenied {
				t.Errorf("agent %v, error %v, want PermissionDenied", id, err)
			}
		})
	}
}

// TestX509POPExchange: the mode spiffe goes by the trust domain's bundle.
func TestX509POPExchange(t *testing.T) {
	t.Parallel()
	r, other := start(t, withX509POP(t, `mode = "spiffe"`)), start(t, testConfig(t))
	for name, tc := range map[string]struct {
		from *running
		path string
		want string // "" is refused
	}{
		"below the prefix": {r, "/spire-exchange/host", "/spire/agent/x509pop/host"},
		"a workload":       {r, "/host", ""},
		"another's":        {other, "/spire-exchange/host", ""},
	} {
		key := newKey(t)
		resp, err := svidv1.NewSVIDClient(tc.from.admin(t)).MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: csr(t, key, "spiffe://"+testDomain+tc.path)})
		if err != nil {
			t.Fatal(err)
		}
		id, err := attestX509POP(t, r.dial(t, nil), key, resp.GetSvid().GetCertChain()...)
		switch {
		case tc.want != "" && (err != nil || id.GetPath() != tc.want):
			t.Errorf("%s: agent %v, error %v", name, id, err)
		case tc.want == "" && status.Code(err) != codes.PermissionDenied:
			t.Errorf("%s: agent %v, error %v, want PermissionDenied", name, id, err)
		}
	}
}

// TestX509POPIsOffUnlessConfigured: unlike join_token.
func TestX509POPIsOffUnlessConfigured(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	key := newKey(t)
	if _, err := attestX509POP(t, r.dial(t, nil), key, machineCert(t, key)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v, want FailedPrecondition", err)
	}
}

// TestX509POPConfiguration: what is wrong is said with the file, the line and the
// key, before anything runs.
func TestX509POPConfiguration(t *testing.T) {
	t.Parallel()
	ca := fmt.Sprintf("ca_bundle_path = %q\n", writeBlock(t, "CERTIFICATE", machineCert(t, newKey(t))))
	for data, want := range map[string]string{
		"":                    "server.conf:3: plugins.NodeAttestor.x509pop: ca_bundle_path: it or ca_bundle_paths is required",
		`mode = "spif"`:       `plugins.NodeAttestor.x509pop: mode: "spif" is not known`,
		`ca_bundle_pat = "x"`: `unknown key`,
		ca + `agent_path_template = "/cn/{{ .X }}"`:             `server.conf:5: plugins.NodeAttestor.x509pop.plugin_data.agent_path_template: the path begins with "/cn/" and has to begin with "/x509pop/"`,
		ca + `agent_path_template = "/x509pop/{{ env \"A\" }}"`: `function "env" not defined`,
		`ca_bundle_path = "/nonexistent/ca.pem"`:                "",
		ca:                                                      "",
	} {
		cfg := withX509POP(t, data)
		err := cfg.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s\nerror: %v\nwant:  %s", data, err, want)
		}
	}
	cfg := withX509POP(t, `ca_bundle_path = "/nonexistent/ca.pem"`)
	if err := cfg.Preflight(); err == nil || !strings.Contains(err.Error(), "plugins.NodeAttestor.x509pop: ca_bundle_path: open /nonexistent/ca.pem") {
		t.Errorf("with a file that is not there: %v", err)
	}
}
