package svid

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// X509Issuer is the authority's part of every certificate, encoded beforehand.
// It holds no private key. It may be used concurrently.
type X509Issuer struct {
	trustDomain         spiffeid.TrustDomain
	notBefore, notAfter time.Time
	hash                crypto.Hash
	intermediates       [][]byte

	sigAlg []byte // AlgorithmIdentifier of the signature
	name   []byte // issuer
	aki    []byte // extension authorityKeyIdentifier
}

// NewX509Issuer prepares an authority. chain is its certificate and, when that
// was signed by an upstream authority, those above it but for the root, which
// relying parties have. NotAfter is the earliest of the chain. It returns
// ErrRefused for a certificate that must not sign SVIDs of the trust domain.
func NewX509Issuer(td spiffeid.TrustDomain, chain []*x509.Certificate) (*X509Issuer, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: authority: its certificate chain is empty", ErrRefused)
	}
	ca := chain[0]
	if err := checkCA(td, ca); err != nil {
		return nil, err
	}
	i := &X509Issuer{trustDomain: td, notBefore: ca.NotBefore.UTC(), notAfter: ca.NotAfter.UTC(), name: ca.RawSubject}
	for n, c := range chain {
		if c.NotAfter.Before(i.notAfter) {
			i.notAfter = c.NotAfter.UTC()
		}
		if c.NotBefore.After(i.notBefore) {
			i.notBefore = c.NotBefore.UTC()
		}
		if n > 0 || !bytes.Equal(c.RawIssuer, c.RawSubject) {
			i.intermediates = append(i.intermediates, c.Raw)
		}
	}
	var err error
	if i.sigAlg, i.hash, err = signatureAlgorithm(ca.PublicKey); err != nil {
		return nil, err
	}
	w := newWriter(64)
	w.authorityKeyIdentifier(ca.SubjectKeyId)
	i.aki = w.der
	return i, nil
}

// NotAfter is the end of the authority's validity, and so of everything it
// signs.
func (i *X509Issuer) NotAfter() time.Time { return i.notAfter }

func checkCA(td spiffeid.TrustDomain, ca *x509.Certificate) error {
	const want = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	switch {
	case !ca.IsCA || !ca.BasicConstraintsValid:
		return fmt.Errorf("%w: authority: basicConstraints does not say CA", ErrRefused)
	case ca.KeyUsage&want != want:
		return fmt.Errorf("%w: authority: keyUsage lacks keyCertSign or cRLSign", ErrRefused)
	case len(ca.SubjectKeyId) == 0:
		return fmt.Errorf("%w: authority: it has no subjectKeyIdentifier", ErrRefused)
	case len(ca.RawSubject) <= 2:
		return fmt.Errorf("%w: authority: its subject is empty", ErrRefused)
	case len(ca.URIs) > 1 || len(ca.URIs) == 1 && ca.URIs[0].String() != td.IDString():
		return fmt.Errorf("%w: authority: its URI SAN is not %q alone", ErrRefused, td.IDString())
	}
	return nil
}

// signatureAlgorithm is fixed by the authority's key: the hash as long as the
// curve, SHA-256 with RSA. The DER is RFC 5758, 3.2 and RFC 4055, 5.
func signatureAlgorithm(pub crypto.PublicKey) ([]byte, crypto.Hash, error) {
	ecdsaWith := func(h byte) []byte {
		return []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, h}
	}
	if err := checkKey(pub); err != nil {
		return nil, 0, fmt.Errorf("authority: %w", err)
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ecdsaWith(2), crypto.SHA256, nil
		case elliptic.P384():
			return ecdsaWith(3), crypto.SHA384, nil
		default:
			return ecdsaWith(4), crypto.SHA512, nil
		}
	case *rsa.PublicKey:
		return []byte{0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00}, crypto.SHA256, nil
	}
	return nil, 0, fmt.Errorf("%w: authority: key type %T", ErrRefused, pub)
}

// version3 is the field version of an X.509 v3 certificate.
var version3 = []byte{0xa0, 0x03, 0x02, 0x01, 0x02}

// Extensions that are the same in every X509-SVID, DER: keyUsage critical,
// digitalSignature | keyEncipherment | keyAgreement; extKeyUsage serverAuth and
// clientAuth; basicConstraints critical, not a CA (X509-SVID, 4.1 and
// appendix A).
var constantExtensions = []byte{
	0x30, 0x0e, 0x06, 0x03, 0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff, 0x04, 0x04, 0x03, 0x02, 0x03, 0xa8,
	0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d, 0x25, 0x04, 0x16, 0x30, 0x14,
	0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01,
	0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
	0x30, 0x0c, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x02, 0x30, 0x00,
}

// subjectHead is C=US, O=SPIRE: SPIRE's subject, which some relying parties
// match on.
var subjectHead = []byte{
	0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, 'U', 'S',
	0x31, 0x0e, 0x30, 0x0c, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x05, 'S', 'P', 'I', 'R', 'E',
}

// encode writes the TBSCertificate (RFC 5280, 4.1).
func (i *X509Issuer) encode(s *X509SVID, serial []byte, req *X509Request, key spki) []byte {
	w := newWriter(512 + len(i.name) + len(key.der) + len(req.ID.String()) + 64*len(req.DNSNames))
	tbs := w.open(cbasn1.SEQUENCE)
	w.bytes(version3)
	w.value(cbasn1.INTEGER, serial)
	w.bytes(i.sigAlg)
	w.bytes(i.name)
	validity := w.open(cbasn1.SEQUENCE)
	w.time(s.NotBefore)
	w.time(s.NotAfter)
	w.close(validity)
	subject := w.open(cbasn1.SEQUENCE)
	w.bytes(subjectHead)
	w.commonName(req.DNSNames)
	w.close(subject)
	w.bytes(key.der)
	explicit := w.open(cbasn1.Tag(3).ContextSpecific().Constructed())
	extensions := w.open(cbasn1.SEQUENCE)
	w.bytes(constantExtensions)
	w.keyIdentifier(key.keyID)
	w.bytes(i.aki)
	w.alternativeNames(req)
	w.close(extensions)
	w.close(explicit)
	w.close(tbs)
	return w.der
}

// keyIdentifier writes the extension subjectKeyIdentifier.
func (w *writer) keyIdentifier(id []byte) {
	ext, value := w.openExtension(14)
	w.value(cbasn1.OCTET_STRING, id)
	w.close(value)
	w.close(ext)
}

// authorityKeyIdentifier writes the extension of that name.
func (w *writer) authorityKeyIdentifier(id []byte) {
	ext, value := w.openExtension(35)
	seq := w.open(cbasn1.SEQUENCE)
	w.value(cbasn1.Tag(0).ContextSpecific(), id)
	w.close(seq)
	w.close(value)
	w.close(ext)
}

// alternativeNames writes the extension subjectAltName: DNS names, then the one
// URI.
func (w *writer) alternativeNames(req *X509Request) {
	ext, value := w.openExtension(17)
	names := w.open(cbasn1.SEQUENCE)
	for _, name := range req.DNSNames {
		w.text(cbasn1.Tag(2).ContextSpecific(), name)
	}
	w.text(cbasn1.Tag(6).ContextSpecific(), req.ID.String())
	w.close(names)
	w.close(value)
	w.close(ext)
}

// commonName writes the first DNS name as CN, as SPIRE does, unless it is
// longer than a CN may be.
func (w *writer) commonName(names []string) {
	if len(names) == 0 || len(names[0]) > maxCommonName {
		return
	}
	tag := cbasn1.PrintableString
	if strings.ContainsAny(names[0], "*_") {
		tag = cbasn1.UTF8String // of what DNS names have, these are not in PrintableString (X.680, 41.4)
	}
	set := w.open(cbasn1.SET)
	attribute := w.open(cbasn1.SEQUENCE)
	w.bytes([]byte{0x06, 0x03, 0x55, 0x04, 0x03})
	w.text(tag, names[0])
	w.close(attribute)
	w.close(set)
}

// assemble writes the Certificate.
func assemble(tbs, sigAlg, signature []byte) []byte {
	w := newWriter(len(tbs) + len(sigAlg) + len(signature) + 16)
	cert := w.open(cbasn1.SEQUENCE)
	w.bytes(tbs)
	w.bytes(sigAlg)
	w.bitString(signature)
	w.close(cert)
	return w.der
}
