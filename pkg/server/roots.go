package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/pkg/registry"
)

// errNoBundle is returned while the server has not read its bundle.
var errNoBundle = errors.New("the trust bundle is not loaded yet")

// roots are the X.509 authorities that clients' certificates are verified with,
// as of the newest commit that this server has seen. They are replaced as a
// whole, so that comparing pointers tells whether anything changed.
type roots struct {
	td  spiffeid.TrustDomain
	now atomic.Pointer[x509bundle.Bundle]
	raw atomic.Pointer[registry.Bundle]
}

// set replaces the authorities by those of the bundle; a nil bundle has none.
// The tainted are among them: whoever has a certificate of one must be able to
// come and get another, until the authority is revoked. One that cannot be read
// is left out and reported.
func (r *roots) set(b *registry.Bundle) error {
	r.raw.Store(b)
	if b == nil {
		b = &registry.Bundle{}
	}
	var problems []error
	certs := make([]*x509.Certificate, 0, len(b.X509Authorities))
	for _, a := range b.X509Authorities {
		cert, err := x509.ParseCertificate(a.DER)
		if err != nil {
			problems = append(problems, fmt.Errorf("reading an X.509 authority of %q: %w", r.td.Name(), err))
			continue
		}
		certs = append(certs, cert)
	}
	r.now.Store(x509bundle.FromX509Authorities(r.td, certs))
	return errors.Join(problems...)
}

// x509Authorities are the authorities at the moment, which the caller does not
// change.
func (r *roots) x509Authorities() []*x509.Certificate {
	if b := r.now.Load(); b != nil {
		return b.X509Authorities()
	}
	return nil
}

// bundle is the whole bundle, nil when there is none.
func (r *roots) bundle() *registry.Bundle { return r.raw.Load() }

// tainted says whether an authority of the chain is tainted.
func (r *roots) tainted(chain []*x509.Certificate) bool {
	b := r.bundle()
	if b == nil {
		return false
	}
	for _, a := range b.X509Authorities {
		if !a.Tainted {
			continue
		}
		root, err := x509.ParseCertificate(a.DER)
		if err != nil {
			continue // set has reported it
		}
		for _, c := range chain {
			if bytes.Equal(c.AuthorityKeyId, root.SubjectKeyId) {
				return true
			}
		}
	}
	return false
}

// verify checks that the chain, which is not empty, is an X509-SVID of this
// trust domain at now.
func (r *roots) verify(chain []*x509.Certificate, now time.Time) (*verified, error) {
	bundle := r.now.Load()
	if bundle == nil {
		return nil, errNoBundle
	}
	id, paths, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err != nil {
		return nil, err
	}
	return &verified{bundle: bundle, until: lastEnd(paths), id: id}, nil
}

// verifyAnew is verify for a certificate that was not seen before. Its authority
// may be so new that this server has not heard of it: then it waits, once, for
// what others have committed. fresh is for strangers: it bounds what they cost.
func (r *roots) verifyAnew(ctx context.Context, chain []*x509.Certificate, fresh func(context.Context) error) error {
	_, err := r.verify(chain, time.Now())
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); !unknown {
		return err
	}
	if id, invalid := x509svid.IDFromCert(chain[0]); invalid != nil || !id.MemberOf(r.td) || r.has(chain[0].AuthorityKeyId) {
		return err
	}
	if fresh(ctx) != nil {
		return err
	}
	_, err = r.verify(chain, time.Now())
	return err
}

// has says whether an authority has the key of the ID.
func (r *roots) has(keyID []byte) bool {
	return slices.ContainsFunc(r.x509Authorities(), func(c *x509.Certificate) bool { return bytes.Equal(c.SubjectKeyId, keyID) })
}

// verified is the outcome of one verification. It holds while the bundle is the
// same one and the time lies before until.
type verified struct {
	bundle *x509bundle.Bundle
	until  time.Time
	id     spiffeid.ID
}

// lastEnd is when the last of the paths ends; a path ends with the first of its
// certificates.
func lastEnd(paths [][]*x509.Certificate) (last time.Time) {
	for _, path := range paths {
		end := path[0].NotAfter
		for _, c := range path[1:] {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		if end.After(last) {
			last = end
		}
	}
	return last
}
