package x509pop

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/credence-id/credence/pkg/attest/node"
)

// roots are trusted certificates. They are immutable.
type roots struct {
	pool *x509.CertPool
	list []*x509.Certificate
}

func newRoots(certs []*x509.Certificate) *roots {
	r := &roots{pool: x509.NewCertPool(), list: certs}
	for _, c := range certs {
		r.pool.AddCert(c)
	}
	return r
}

// errUntrusted refuses a certificate; why is for the log.
func errUntrusted(why string) error {
	return fmt.Errorf("%w: the certificate is not trusted: %s", node.ErrRefused, why)
}

// verify returns all chains from the first certificate to a root.
//
// It works from the roots down before it lets x509 search upwards: the search
// would use the keys of certificates that nobody has signed, in as many orders
// as there are.
func (r *roots) verify(shown []*x509.Certificate) ([][]*x509.Certificate, error) {
	leaf, genuine := shown[0], r.genuine(shown)
	if !slices.Contains(genuine, leaf) {
		return nil, errUntrusted("no chain of signatures leads to a trusted authority")
	}
	intermediates := x509.NewCertPool()
	for _, c := range genuine {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Intermediates: intermediates, Roots: r.pool,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, errUntrusted(err.Error())
	}
	return chains, nil
}

// genuine returns the certificates that signatures lead to from a root. Each pair
// of a certificate and a possible signer is looked at once, and only when the
// signer is known to be genuine.
func (r *roots) genuine(shown []*x509.Certificate) (out []*x509.Certificate) {
	for signers := r.list; len(signers) > 0; {
		var next []*x509.Certificate
		for _, c := range shown {
			if !slices.Contains(out, c) && r.signedByOne(c, signers) {
				out, next = append(out, c), append(next, c)
			}
		}
		signers = next
	}
	return out
}

// signedByOne says whether one of the signers signed c, or is it.
func (r *roots) signedByOne(c *x509.Certificate, signers []*x509.Certificate) bool {
	for _, s := range signers {
		if c.Equal(s) {
			return true
		}
		if !bytes.Equal(c.RawIssuer, s.RawSubject) || otherKey(c, s) {
			continue
		}
		if c.CheckSignatureFrom(s) == nil {
			return true
		}
	}
	return false
}

// otherKey says that c names a key as its signer's, and it is not that of s
// (RFC 5280, section 4.2.1.1).
func otherKey(c, s *x509.Certificate) bool {
	return len(c.AuthorityKeyId) > 0 && len(s.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, s.SubjectKeyId)
}
