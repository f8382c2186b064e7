package svid

import (
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxCSR bounds a certificate signing request, in bytes of DER.
const MaxCSR = 16 << 10

// ParseCSR returns the public key of a PKCS #10 request (DER) whose signature
// proves possession of the private half. Everything else in the request, its
// subject, its SANs, its attributes, is ignored and cannot be got from here
// (S19). It returns ErrInvalid, or ErrRefused for a key that may not be
// certified, which is found out before the signature is computed (S07).
func ParseCSR(der []byte) (crypto.PublicKey, error) {
	csr, err := parseCSR(der)
	if err != nil {
		return nil, err
	}
	return csr.PublicKey, nil
}

// ParseMintCSR is ParseCSR for a caller who may mint any SPIFFE ID of the trust
// domain, and only for such a caller: the ID and the DNS names are the
// request's own. The subject is ignored. The TTL is left to be filled in.
func ParseMintCSR(der []byte) (X509Request, error) {
	csr, err := parseCSR(der)
	if err != nil {
		return X509Request{}, err
	}
	if len(csr.URIs) != 1 {
		return X509Request{}, fmt.Errorf("%w CSR: it has %d URI SANs and must have exactly one, the SPIFFE ID", ErrInvalid, len(csr.URIs))
	}
	id, err := spiffeid.FromURI(csr.URIs[0])
	if err != nil {
		return X509Request{}, fmt.Errorf("%w CSR: URI SAN: %w", ErrInvalid, err)
	}
	return X509Request{Kind: Workload, ID: id, PublicKey: csr.PublicKey, DNSNames: csr.DNSNames}, nil
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) == 0 {
		return nil, fmt.Errorf("%w CSR: it is empty", ErrInvalid)
	}
	if len(der) > MaxCSR {
		return nil, fmt.Errorf("%w CSR: %d bytes are more than %d", ErrInvalid, len(der), MaxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w CSR: %w", ErrInvalid, err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w CSR: signature: %w", ErrInvalid, err)
	}
	return csr, nil
}
