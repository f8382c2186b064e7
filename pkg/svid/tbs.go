package svid

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// X509Issuer is the authority's part of every certificate, encoded beforehand.
// It holds no private key. It may be used concurrently.
type X509Issuer struct {
	trustDomain         spiffeid.TrustDomain
	notBefore, notAfter time.Time
	hash                crypto.Hash
	intermediates       [][]byte

	head   []byte // version
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
	i.head = []byte{0xa0, 0x03, 0x02, 0x01, 0x02}
	i.aki, err = build(64, func(b *cryptobyte.Builder) {
		addExtension(b, 35, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(ca.SubjectKeyId) })
			})
		})
	})
	return i, err
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
func (i *X509Issuer) encode(s *X509SVID, serial []byte, req *X509Request, key spki) ([]byte, error) {
	return build(1024, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(i.head)
			b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
			b.AddBytes(i.sigAlg)
			b.AddBytes(i.name)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addTime(b, s.NotBefore)
				addTime(b, s.NotAfter)
			})
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddBytes(subjectHead)
				addCommonName(b, req.DNSNames)
			})
			b.AddBytes(key.der)
			b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(constantExtensions)
					addExtension(b, 14, func(b *cryptobyte.Builder) { b.AddASN1OctetString(key.keyID) })
					b.AddBytes(i.aki)
					addExtension(b, 17, func(b *cryptobyte.Builder) { addSANs(b, req) })
				})
			})
		})
	})
}

// addSANs writes GeneralNames: DNS names, then the one URI.
func addSANs(b *cryptobyte.Builder, req *X509Request) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, name := range req.DNSNames {
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
		}
		b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(req.ID.String())) })
	})
}

// addCommonName writes the first DNS name as CN, as SPIRE does, unless it is
// longer than a CN may be.
func addCommonName(b *cryptobyte.Builder, names []string) {
	if len(names) == 0 || len(names[0]) > maxCommonName {
		return
	}
	tag := cbasn1.PrintableString
	if names[0][0] == '*' {
		tag = cbasn1.UTF8String // an asterisk is not in PrintableString
	}
	b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes([]byte{0x06, 0x03, 0x55, 0x04, 0x03})
			b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(names[0])) })
		})
	})
}

// addExtension writes a non-critical extension of the id-ce arc (2.5.29.n).
func addExtension(b *cryptobyte.Builder, n byte, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes([]byte{0x06, 0x03, 0x55, 0x1d, n})
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// addTime writes UTCTime through 2049 and GeneralizedTime after (RFC 5280,
// 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	tag, layout := cbasn1.UTCTime, "060102150405Z"
	if y := t.Year(); y < 1950 || y >= 2050 {
		tag, layout = cbasn1.GeneralizedTime, "20060102150405Z"
	}
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(t.AppendFormat(nil, layout)) })
}

// assemble writes the Certificate.
func assemble(tbs, sigAlg, signature []byte) ([]byte, error) {
	return build(len(tbs)+len(sigAlg)+len(signature)+16, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddBytes(sigAlg)
			b.AddASN1BitString(signature)
		})
	})
}

func build(size int, fn cryptobyte.BuilderContinuation) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, size))
	fn(b)
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding DER: %w", err)
	}
	return der, nil
}
