package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

// attest gets an SVID with the node's evidence, which is also how it is
// renewed: the evidence may be used again.
func (a *agent) attest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	start := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	l, err := a.dial(ctx, nil)
	if err != nil {
		return err
	}
	defer l.close()
	c := &conversation{method: a.prover.Name(), csr: csr}
	if err := c.hold(ctx, l.conn, a.prover); err != nil {
		return err
	}
	certs, err := x509.ParseCertificates(slices.Concat(c.result.GetSvid().GetCertChain()...))
	if err != nil {
		return err
	}
	id, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return err
	}
	if id != a.id {
		return fmt.Errorf("attested as %s, want %s", id, a.id)
	}
	first := a.own == nil
	a.own = &x509svid.SVID{ID: id, Certificates: certs, PrivateKey: key}
	a.renewAt = a.renewal(certs[0], first)
	took := time.Since(start)
	a.fleet.stats.note(func(s *Sample) { s.Attested = append(s.Attested, took) })
	return nil
}

func (a *agent) renewal(c *x509.Certificate, first bool) time.Time {
	at := svid.RotateAt(c.NotBefore, c.NotAfter, mathrand.Float64()) //nolint:gosec // only spreads the renewals
	if !first || a.fleet.cfg.Fresh {
		return at
	}
	return time.Now().Add(mathrand.N(max(time.Until(at), 1))) //nolint:gosec // as above
}

// conversation is an attestation.
type conversation struct {
	stream agentv1.Agent_AttestAgentClient
	method string
	csr    []byte
	begun  bool
	result *agentv1.AttestAgentResponse_Result
}

func (c *conversation) hold(ctx context.Context, conn grpc.ClientConnInterface, p node.Prover) (err error) {
	if c.stream, err = agentv1.NewAgentClient(conn).AttestAgent(ctx); err != nil {
		return err
	}
	if err := p.Prove(ctx, c); err != nil {
		return err
	}
	if c.result == nil {
		return errors.New("the attestation ended without a result")
	}
	return nil
}

// Challenge is node.Conversation.
func (c *conversation) Challenge(_ context.Context, message []byte) ([]byte, error) {
	req := &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: message}}
	if !c.begun {
		c.begun = true
		req.Step = &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: c.method, Payload: message},
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
