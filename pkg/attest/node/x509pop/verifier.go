package x509pop

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"

	"github.com/credence-id/credence/pkg/attest/node"
)

// Verifier checks a certificate and that the agent has its key. It implements
// node.Verifier.
type Verifier struct {
	config VerifierConfig
	// authorities are trusted in the mode external_pki.
	authorities *roots
}

var _ node.Verifier = (*Verifier)(nil)

// NewVerifier returns a verifier for a valid configuration. It reads the files
// with the authorities, once.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.AgentPathTemplate != "" && c.Path == nil {
		return nil, errors.New("agent_path_template: nothing was given that reads it")
	}
	v := &Verifier{config: c}
	if c.Mode == modeSPIFFE {
		if c.TrustBundle == nil {
			return nil, errors.New("mode: spiffe needs the trust domain's bundle, and none was given")
		}
		return v, nil
	}
	files := c.CABundlePaths
	if c.CABundlePath != "" {
		files = []string{c.CABundlePath}
	}
	var trusted []*x509.Certificate
	for _, file := range files {
		certs, err := loadCertificates(file)
		if err != nil {
			return nil, fmt.Errorf("ca_bundle_path: %w", err)
		}
		trusted = append(trusted, certs...)
	}
	v.authorities = newRoots(trusted)
	return v, nil
}

// Name is node.Verifier.
func (*Verifier) Name() string { return Name }

// Verify is node.Verifier.
func (v *Verifier) Verify(ctx context.Context, a node.Attempt) (node.Result, error) {
	// 1. What is shown: read, small enough, and of a kind that can be used.
	shown, err := v.read(a.Payload)
	if err != nil {
		return node.Result{}, err
	}
	leaf := shown[0]
	if err := usable(leaf); err != nil {
		return node.Result{}, err
	}
	// 2. Is it by somebody who is trusted?
	chains, err := v.trusted().verify(shown)
	if err != nil {
		return node.Result{}, err
	}
	if v.config.VerifyClientIP {
		if err := checkAddress(leaf, a.PeerIP); err != nil {
			return node.Result{}, err
		}
	}
	path, err := v.exchanged(leaf, a.TrustDomain)
	if err != nil {
		return node.Result{}, err
	}
	// 3. Does the agent have the key?
	if err := challengeKey(ctx, leaf.PublicKey, a.Challenge); err != nil {
		return node.Result{}, err
	}
	// 4. Who is it then?
	return v.identify(a.TrustDomain, leaf, chains, path)
}

// trusted is the authorities at the moment.
func (v *Verifier) trusted() *roots {
	if v.config.Mode == modeSPIFFE {
		return newRoots(v.config.TrustBundle())
	}
	return v.authorities
}

// maxOthers bounds what a payload may have beside certificates, in members of
// JSON: nothing, so far.
const maxOthers = 16

// read decodes the payload. Nothing is computed with the keys it finds.
func (v *Verifier) read(payload []byte) ([]*x509.Certificate, error) {
	limit := orDefault(v.config.MaxIntermediates, defaultMaxIntermediates)
	// Thousands of empty certificates are refused before any is decoded: in
	// base64 there are no commas.
	if bytes.Count(payload, []byte{','}) > limit+maxOthers {
		return nil, fmt.Errorf("%w: there are far more intermediate certificates than the %d that are allowed (max_intermediates)", node.ErrMalformed, limit)
	}
	shown, err := parse[evidence](payload, "payload")
	if err != nil {
		return nil, err
	}
	switch n := len(shown.Certificates); {
	case n == 0:
		return nil, fmt.Errorf("%w: there is no certificate", node.ErrMalformed)
	case n-1 > limit:
		return nil, fmt.Errorf("%w: there are %d intermediate certificates, at most %d are allowed (max_intermediates)", node.ErrMalformed, n-1, limit)
	}
	out := make([]*x509.Certificate, 0, len(shown.Certificates))
	for i, der := range shown.Certificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d cannot be parsed", node.ErrMalformed, i)
		}
		if err := v.checkSize(c); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// maxExponent is the largest public exponent of an RSA key: the one that
// nearly all have. A larger one makes each verification dearer.
const maxExponent = 65537

// checkSize keeps keys to what can be used at a cost that is known.
func (v *Verifier) checkSize(c *x509.Certificate) error {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil
	}
	limit := orDefault(v.config.MaxRSAKeySize, defaultMaxRSAKeySize)
	if n := key.N.BitLen(); n > limit {
		return fmt.Errorf("%w: the RSA key has %d bits, at most %d are allowed (max_rsa_key_size)", node.ErrMalformed, n, limit)
	}
	if key.E > maxExponent {
		return fmt.Errorf("%w: the RSA key has a public exponent above %d", node.ErrMalformed, maxExponent)
	}
	return nil
}

// usable says whether the certificate's key may sign, and x509pop knows how.
func usable(leaf *x509.Certificate) error {
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("%w: the certificate has not the key usage digitalSignature", node.ErrRefused)
	}
	switch leaf.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
		return nil
	}
	return fmt.Errorf("%w: the certificate's key is neither RSA nor ECDSA", node.ErrRefused)
}

// checkAddress compares the agent's address with those of its certificate.
func checkAddress(leaf *x509.Certificate, peer netip.Addr) error {
	if !peer.IsValid() {
		return errors.New("verify_client_ip: the agent's IP address is not known")
	}
	for _, ip := range leaf.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok && a.Unmap() == peer.Unmap() {
			return nil
		}
	}
	return fmt.Errorf("%w: the agent's IP address %s is not in its certificate (verify_client_ip)", node.ErrRefused, peer)
}

// challengeKey has the agent sign nonces of both sides.
func challengeKey(ctx context.Context, key crypto.PublicKey, ask func(context.Context, []byte) ([]byte, error)) error {
	own, err := newNonce()
	if err != nil {
		return err
	}
	question := challenge{ECDSA: &nonce{own}}
	if _, ok := key.(*rsa.PublicKey); ok {
		question = challenge{RSA: &nonce{own}}
	}
	message, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("encoding the challenge: %w", err)
	}
	answer, err := ask(ctx, message)
	if err != nil {
		return fmt.Errorf("challenging the agent: %w", err)
	}
	got, err := parse[response](answer, "challenge response")
	if err != nil {
		return err
	}
	return checkSignature(key, own, got)
}

var errSignature = fmt.Errorf("%w: the signature over the nonces is not by the certificate's key", node.ErrRefused)

func checkSignature(key crypto.PublicKey, own []byte, got *response) error {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if got.RSA == nil {
			return fmt.Errorf("%w: the challenge response has no RSA signature", node.ErrMalformed)
		}
		sum, err := digest(own, got.RSA.Nonce)
		if err != nil {
			return err
		}
		if rsa.VerifyPSS(key, crypto.SHA256, sum, got.RSA.Signature, nil) != nil {
			return errSignature
		}
		return nil
	case *ecdsa.PublicKey:
		if got.ECDSA == nil {
			return fmt.Errorf("%w: the challenge response has no ECDSA signature", node.ErrMalformed)
		}
		sum, err := digest(own, got.ECDSA.Nonce)
		if err != nil {
			return err
		}
		r, s := new(big.Int).SetBytes(got.ECDSA.R), new(big.Int).SetBytes(got.ECDSA.S)
		if !ecdsa.Verify(key, sum, r, s) {
			return errSignature
		}
		return nil
	}
	return errSignature
}
