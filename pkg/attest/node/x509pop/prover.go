package x509pop

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// ProverConfig is plugin_data of the agent.
//
//credence:plugin_data agent NodeAttestor x509pop
type ProverConfig struct {
	// PrivateKeyPath is a PEM file with the key, PKCS #1, SEC 1 or PKCS #8;
	// required unless spiffe_endpoint_socket is set.
	PrivateKeyPath string `hcl:"private_key_path"`
	// CertificatePath is a PEM file with the node's certificate, and perhaps
	// intermediates behind it; required unless spiffe_endpoint_socket is set.
	CertificatePath string `hcl:"certificate_path"`
	// IntermediatesPath is a PEM file with more intermediates.
	IntermediatesPath string `hcl:"intermediates_path"`
	// SPIFFEEndpointSocket is a Workload API, such as
	// unix:///run/other/api.sock, that the X509-SVID to show is fetched from,
	// in place of files.
	SPIFFEEndpointSocket string `hcl:"spiffe_endpoint_socket"`
}

// Validate reports every problem with its key. It touches no file.
func (c ProverConfig) Validate() error {
	if c.SPIFFEEndpointSocket != "" {
		if c.PrivateKeyPath+c.CertificatePath+c.IntermediatesPath != "" {
			return errors.New("spiffe_endpoint_socket: is exclusive with private_key_path, certificate_path and intermediates_path; keep one kind")
		}
		if err := workloadapi.ValidateAddress(c.SPIFFEEndpointSocket); err != nil {
			return fmt.Errorf("spiffe_endpoint_socket: %w", err)
		}
		return nil
	}
	var problems []error
	if c.PrivateKeyPath == "" {
		problems = append(problems, errors.New("private_key_path: is required: name the PEM file with the node's private key"))
	}
	if c.CertificatePath == "" {
		problems = append(problems, errors.New("certificate_path: is required: name the PEM file with the node's certificate"))
	}
	return errors.Join(problems...)
}

// CheckFiles says what is wrong with the files that are named, as they are now.
func (c ProverConfig) CheckFiles() error {
	if c.SPIFFEEndpointSocket != "" {
		return nil
	}
	_, _, err := NewProver(c).read()
	return err
}

// Prover shows a certificate and signs with its key. It implements node.Prover.
type Prover struct{ config ProverConfig }

var _ node.Prover = (*Prover)(nil)

// NewProver returns a prover for a valid configuration. It reads nothing: the
// files are read at each attestation, so that what renews them needs to tell
// nobody.
func NewProver(c ProverConfig) *Prover { return &Prover{config: c} }

// Name is node.Prover.
func (*Prover) Name() string { return Name }

// Prove is node.Prover. What is wrong with the files is an error of its own and
// not node.ErrRefused: they may be better the next time.
func (p *Prover) Prove(ctx context.Context, c node.Conversation) error {
	chain, key, err := p.load(ctx)
	if err != nil {
		return err
	}
	payload, err := json.Marshal(evidence{Certificates: chain})
	if err != nil {
		return fmt.Errorf("encoding the certificates: %w", err)
	}
	if len(payload) > node.MaxMessage {
		return fmt.Errorf("the certificates make a message of %d bytes, and at most %d are allowed: leave out what is not needed for the chain", len(payload), node.MaxMessage)
	}
	question, err := c.Challenge(ctx, payload)
	if err != nil {
		return ended(err)
	}
	asked, err := parse[challenge](question, "challenge")
	if err != nil {
		return err
	}
	answer, err := respond(asked, key)
	if err != nil {
		return err
	}
	_, err = c.Challenge(ctx, answer)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%w: the server asks for more than one signature", node.ErrMalformed)
	}
	return err
}

// ended is the error of an attestation that ended at the wrong moment.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the server asked for no signature", node.ErrMalformed)
	}
	return err
}

// load reads the DER chain, leaf first, and its key.
func (p *Prover) load(ctx context.Context) ([][]byte, crypto.Signer, error) {
	if p.config.SPIFFEEndpointSocket != "" {
		return p.fetch(ctx)
	}
	return p.read()
}

// read reads the files.
func (p *Prover) read() ([][]byte, crypto.Signer, error) {
	pair, err := tls.LoadX509KeyPair(p.config.CertificatePath, p.config.PrivateKeyPath)
	if err != nil {
		return nil, nil, fmt.Errorf("reading certificate_path %s and private_key_path %s: %w", p.config.CertificatePath, p.config.PrivateKeyPath, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("reading private_key_path %s: a key of type %T cannot sign", p.config.PrivateKeyPath, pair.PrivateKey)
	}
	chain := pair.Certificate
	if p.config.IntermediatesPath != "" {
		more, err := loadCertificates(p.config.IntermediatesPath)
		if err != nil {
			return nil, nil, fmt.Errorf("reading intermediates_path: %w", err)
		}
		for _, c := range more {
			chain = append(chain, c.Raw)
		}
	}
	return chain, key, nil
}

// fetch gets the default X509-SVID of a Workload API.
func (p *Prover) fetch(ctx context.Context) ([][]byte, crypto.Signer, error) {
	svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(p.config.SPIFFEEndpointSocket))
	if err != nil {
		return nil, nil, fmt.Errorf("fetching an X509-SVID from spiffe_endpoint_socket %s: %w", p.config.SPIFFEEndpointSocket, err)
	}
	chain := make([][]byte, 0, len(svid.Certificates))
	for _, c := range svid.Certificates {
		chain = append(chain, c.Raw)
	}
	return chain, svid.PrivateKey, nil
}

// respond signs for a challenge.
func respond(asked *challenge, key crypto.Signer) ([]byte, error) {
	own, err := newNonce()
	if err != nil {
		return nil, err
	}
	var out response
	switch k := key.(type) {
	case *rsa.PrivateKey:
		out.RSA, err = signRSA(asked.RSA, own, k)
	case *ecdsa.PrivateKey:
		out.ECDSA, err = signECDSA(asked.ECDSA, own, k)
	default:
		err = fmt.Errorf("%w: a key of type %T cannot be used with x509pop: it has to be RSA or ECDSA", node.ErrRefused, key)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

func signRSA(servers *nonce, own []byte, key *rsa.PrivateKey) (*rsaSignature, error) {
	if servers == nil {
		return nil, fmt.Errorf("%w: the server does not ask for an RSA signature", node.ErrMalformed)
	}
	sum, err := digest(servers.Nonce, own)
	if err != nil {
		return nil, err
	}
	signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum, nil)
	if err != nil {
		return nil, fmt.Errorf("signing the nonces: %w", err)
	}
	return &rsaSignature{Nonce: own, Signature: signature}, nil
}

func signECDSA(servers *nonce, own []byte, key *ecdsa.PrivateKey) (*ecdsaSignature, error) {
	if servers == nil {
		return nil, fmt.Errorf("%w: the server does not ask for an ECDSA signature", node.ErrMalformed)
	}
	sum, err := digest(servers.Nonce, own)
	if err != nil {
		return nil, err
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, sum)
	if err != nil {
		return nil, fmt.Errorf("signing the nonces: %w", err)
	}
	return &ecdsaSignature{Nonce: own, R: r.Bytes(), S: s.Bytes()}, nil
}

// loadCertificates reads the certificates of a PEM file; other blocks are
// passed over. A file without any is an error.
func loadCertificates(path string) ([]*x509.Certificate, error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", path, len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no PEM block CERTIFICATE found", path)
	}
	return out, nil
}
