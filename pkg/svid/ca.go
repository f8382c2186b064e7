package svid

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// CATemplate is the certificate of an X.509 authority, for
// x509.CreateCertificate or as the content of a CSR to an upstream authority
// (X509-SVID, 4.1 and 4.2). random becomes the serial number as in
// [X509Issuer.Approve], in decimal also the subject's serialNumber, unless the
// subject has one, so that no two authorities share a name. notAfter is
// truncated to a second.
func CATemplate(now, notAfter time.Time, random [16]byte, td spiffeid.TrustDomain, subject pkix.Name, pub crypto.PublicKey) (*x509.Certificate, error) {
	key, err := encodeKey(pub)
	if err != nil {
		return nil, err
	}
	random[0] = random[0]&0x7f | 0x40
	serial := new(big.Int).SetBytes(random[:])
	if subject.SerialNumber == "" {
		subject.SerialNumber = serial.String()
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             now.Add(-Backdate).UTC().Truncate(time.Second),
		NotAfter:              notAfter.UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            -1,
		SubjectKeyId:          slices.Clone(key.keyID),
		URIs:                  []*url.URL{td.ID().URL()},
		PublicKey:             pub,
	}, nil
}
