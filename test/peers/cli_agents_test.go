package peers

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
	"os"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// nodeCA certifies the nodes of one side.
type nodeCA struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	nodes int64
}

// newNodeCA makes one, and has the server of the side, which has not started,
// attest nodes by its certificates.
func newNodeCA(t *testing.T, s *side) *nodeCA {
	t.Helper()
	ca := &nodeCA{key: newKey(t)}
	der := ca.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nodes"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, ca.key)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ca.cert = cert
	s.write("nodes.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	conf, err := os.ReadFile(s.path("server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("server.conf", strings.Replace(string(conf), "plugins {",
		fmt.Sprintf("plugins {\n\tNodeAttestor \"x509pop\" { plugin_data { ca_bundle_path = %q } }", s.path("nodes.pem")), 1))
	return ca
}

func (ca *nodeCA) sign(t *testing.T, template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := ca.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// attestByCertificate lets one more node in, and returns its SPIFFE ID.
func (m *terminal) attestByCertificate(t *testing.T) string {
	t.Helper()
	m.nodes.nodes++
	key := newKey(t)
	der := m.nodes.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1 + m.nodes.nodes), Subject: pkix.Name{CommonName: "node"}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, key)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	m.write("node.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	m.write("node.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	c := m.converse(t, x509pop.Name)
	prover := x509pop.NewProver(x509pop.ProverConfig{PrivateKeyPath: m.path("node.key"), CertificatePath: m.path("node.pem")})
	if err := prover.Prove(bounded(t), c); err != nil {
		t.Fatal(err)
	}
	return c.id
}

// attestByToken lets an agent in, and returns its SPIFFE ID.
func (m *terminal) attestByToken(t *testing.T) string {
	t.Helper()
	token, err := agentv1.NewAgentClient(m.local).CreateJoinToken(bounded(t), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		t.Fatal(err)
	}
	c := m.converse(t, "join_token")
	if _, err := c.Challenge(bounded(t), []byte(token.GetValue())); !errors.Is(err, io.EOF) {
		t.Fatalf("attesting by token: %v, want io.EOF", err)
	}
	return c.id
}

// conversation is the agent's side of AttestAgent; id is who it has become.
type conversation struct {
	stream agentv1.Agent_AttestAgentClient
	method string
	csr    []byte
	begun  bool
	id     string
}

func (m *terminal) converse(t *testing.T, method string) *conversation {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := agentv1.NewAgentClient(m.tcp(nil)).AttestAgent(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	return &conversation{stream: stream, method: method, csr: csr}
}

// Challenge is that of [node.Conversation].
func (c *conversation) Challenge(_ context.Context, message []byte) ([]byte, error) {
	req := &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: message}}
	if !c.begun {
		c.begun = true
		req.Step = &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
			Data: &types.AttestationData{Type: c.method, Payload: message}, Params: &agentv1.AgentX509SVIDParams{Csr: c.csr},
		}}
	}
	if err := c.stream.Send(req); err != nil {
		return nil, err
	}
	answer, err := c.stream.Recv()
	if err != nil {
		return nil, err
	}
	if id := answer.GetResult().GetSvid().GetId(); id != nil {
		c.id = "spiffe://" + id.GetTrustDomain() + id.GetPath()
		return nil, io.EOF
	}
	return answer.GetChallenge(), nil
}
