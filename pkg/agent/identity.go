package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

// keySlots take turns, so that the key of the SVID in use is never replaced
// before its successor is on disk.
var keySlots = [2]string{"agent-svid-a", "agent-svid-b"}

// identity is the agent's own X509-SVID: how it was got, is kept and renewed.
type identity struct {
	td   spiffeid.TrustDomain
	keys keys.Manager
	path string
	// target is the outage that the SVID is to outlast, see svid.RotateFor.
	target time.Duration

	current atomic.Pointer[nodeSVID]
	// reattests says that an SVID of this life was got by evidence that can be
	// used again.
	reattests atomic.Bool
	// attesting is used by the one goroutine that attests.
	attesting keys.Key
}

// nodeSVID is immutable.
type nodeSVID struct {
	*x509svid.SVID
	slot         string
	reattestable bool
	renewAt      time.Time
	// taken is when the server gave it; zero for one of an earlier run.
	taken time.Time
}

func (s *nodeSVID) notAfter() time.Time { return s.Certificates[0].NotAfter }

// record is the file at identity.path. Certificates are DER, leaf first.
type record struct {
	Certificates [][]byte `json:"certificates"`
	Reattestable bool     `json:"reattestable"`
}

// GetX509SVID is x509svid.Source.
func (id *identity) GetX509SVID() (*x509svid.SVID, error) {
	s := id.current.Load()
	if s == nil {
		return nil, errors.New("the agent is not attested yet")
	}
	return s.SVID, nil
}

// load takes up the SVID of an earlier run, when its key is still there. It
// returns false when there is none; a file that cannot be read is an error, as
// it may be all that stands between this node and a new attestation.
func (id *identity) load(ctx context.Context) (bool, error) {
	r, certs, err := readSVID(id.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, slot := range keySlots {
		key, err := id.keys.Get(ctx, slot)
		if errors.Is(err, keys.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("reading the agent's key: %w", err)
		}
		if publicKeyEqual(key.Signer.Public(), certs[0].PublicKey) {
			return true, id.use(certs, key, r.Reattestable, time.Time{})
		}
	}
	return false, nil // a key kept in memory went with the process that had it
}

// readSVID reads the file of an earlier life's SVID; fs.ErrNotExist when there is
// none.
func readSVID(path string) (record, []*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, nil, fmt.Errorf("reading the agent's SVID: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, nil, fmt.Errorf("reading the agent's SVID: %s: %w; remove the file to attest again", path, err)
	}
	certs, err := parseChain(r.Certificates)
	if err != nil {
		return record{}, nil, fmt.Errorf("reading the agent's SVID: %s: %w; remove the file to attest again", path, err)
	}
	return r, certs, nil
}

// forget removes the SVID, here and on disk, and the keys it had.
func (id *identity) forget(ctx context.Context) error {
	id.current.Store(nil)
	id.attesting = keys.Key{}
	for _, slot := range keySlots {
		if err := id.keys.Delete(ctx, slot); err != nil {
			return fmt.Errorf("removing the agent's key: %w", err)
		}
	}
	if err := os.Remove(id.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the agent's SVID: %w", err)
	}
	return nil
}

// attest proves to the server which node this is and takes the SVID it gives.
func (id *identity) attest(ctx context.Context, conn grpc.ClientConnInterface, p node.Prover) error {
	key, csr, err := id.attestKey(ctx)
	if err != nil {
		return err
	}
	id.attesting = key
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	if err != nil {
		return fmt.Errorf("attesting with %s: %w", p.Name(), err)
	}
	c := &conversation{stream: stream, method: p.Name(), csr: csr}
	if err := p.Prove(ctx, c); err != nil {
		return fmt.Errorf("attesting with %s: %w", p.Name(), err)
	}
	if c.result == nil {
		return fmt.Errorf("attesting with %s: the method ended before the server gave a result", p.Name())
	}
	if err := id.take(c.result.GetSvid(), key, c.result.GetReattestable()); err != nil {
		return err
	}
	id.attesting = keys.Key{}
	return nil
}

// renew gets the next SVID over a connection that the current one
// authenticates.
func (id *identity) renew(ctx context.Context, conn grpc.ClientConnInterface) error {
	key, csr, err := id.newKey(ctx)
	if err != nil {
		return err
	}
	resp, err := agentv1.NewAgentClient(conn).RenewAgent(ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr}})
	if err != nil {
		return fmt.Errorf("renewing the agent's SVID: %w", err)
	}
	return id.take(resp.GetSvid(), key, id.current.Load().reattestable)
}

// attestKey is the key to attest with. It is kept until an attestation with it
// succeeded, over restarts too where keys are durable: the server lets the same
// key try a join token again after a lost reply, and another key never.
func (id *identity) attestKey(ctx context.Context) (keys.Key, []byte, error) {
	key := id.attesting
	if key.Signer == nil && id.current.Load() == nil {
		var err error
		if key, err = id.keys.Get(ctx, keySlots[0]); err != nil && !errors.Is(err, keys.ErrNotFound) {
			return keys.Key{}, nil, fmt.Errorf("reading the agent's key: %w", err)
		}
	}
	if key.Signer == nil {
		return id.newKey(ctx)
	}
	csr, err := newCSR(key)
	return key, csr, err
}

// newKey makes a key in the slot that is not in use, and a CSR for it.
func (id *identity) newKey(ctx context.Context) (keys.Key, []byte, error) {
	slot := keySlots[0]
	if cur := id.current.Load(); cur != nil && cur.slot == slot {
		slot = keySlots[1]
	}
	key, err := id.keys.Generate(ctx, slot, keys.ECP256)
	if err != nil {
		return keys.Key{}, nil, fmt.Errorf("making the agent's key: %w", err)
	}
	csr, err := newCSR(key)
	return key, csr, err
}

func newCSR(key keys.Key) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key.Signer)
	if err != nil {
		return nil, fmt.Errorf("making the agent's CSR: %w", err)
	}
	return csr, nil
}

// take checks what the server issued, writes it to disk and then uses it.
func (id *identity) take(issued *types.X509SVID, key keys.Key, reattestable bool) error {
	certs, err := parseChain(issued.GetCertChain())
	if err != nil {
		return fmt.Errorf("reading the SVID the server issued: %w", err)
	}
	if !publicKeyEqual(key.Signer.Public(), certs[0].PublicKey) {
		return errors.New("the SVID the server issued is for another key")
	}
	data, err := json.Marshal(record{Certificates: issued.GetCertChain(), Reattestable: reattestable})
	if err != nil {
		return fmt.Errorf("keeping the agent's SVID: %w", err)
	}
	if err := atomicfile.Write(id.path, data, 0o600); err != nil {
		return fmt.Errorf("keeping the agent's SVID: %w", err)
	}
	return id.use(certs, key, reattestable, time.Now())
}

func (id *identity) use(certs []*x509.Certificate, key keys.Key, reattestable bool, taken time.Time) error {
	spiffeID, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return fmt.Errorf("reading the agent's SVID: %w", err)
	}
	if !spiffeID.MemberOf(id.td) {
		return fmt.Errorf("the agent's SVID is of trust domain %s, not %s; use another data_dir for another trust domain", spiffeID.TrustDomain(), id.td)
	}
	id.reattests.Store(reattestable)
	id.current.Store(&nodeSVID{
		SVID:         &x509svid.SVID{ID: spiffeID, Certificates: certs, PrivateKey: key.Signer},
		slot:         key.ID,
		reattestable: reattestable,
		taken:        taken,
		renewAt:      id.rotateAt(certs[0]),
	})
	return nil
}

// rotateAt is when the agent's own SVID is renewed.
func (id *identity) rotateAt(c *x509.Certificate) time.Time {
	spread := mathrand.Float64() //nolint:gosec // only spreads the renewals
	at := svid.RotateAt(c.NotBefore, c.NotAfter, spread)
	return svid.RotateFor(id.target, at, c.NotBefore.Add(svid.Backdate), c.NotAfter, spread)
}

func parseChain(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("no certificate")
	}
	certs := make([]*x509.Certificate, 0, len(chain))
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

func publicKeyEqual(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// conversation carries a method's messages over the AttestAgent stream.
type conversation struct {
	stream agentv1.Agent_AttestAgentClient
	method string
	csr    []byte

	begun  bool
	result *agentv1.AttestAgentResponse_Result
}

// answer is what ended the stream of an attestation, as opposed to what went
// wrong in the method, which may have calls of its own to others.
type answer struct{ error }

func (a answer) Unwrap() error { return a.error }

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
	// Send reports io.EOF when the server has ended the stream; Recv says why.
	if err := c.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, answer{err}
	}
	resp, err := c.stream.Recv()
	if err != nil {
		return nil, answer{err}
	}
	if r := resp.GetResult(); r != nil {
		c.result = r
		return nil, io.EOF
	}
	return resp.GetChallenge(), nil
}
