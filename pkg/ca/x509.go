package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// backdate is svid.Backdate, under a shorter name.
const backdate = svid.Backdate

// pruneDelay is how long an expired root stays in the bundle at most, for
// relying parties whose clocks are behind; SPIRE's value.
const pruneDelay = 24 * time.Hour

// pruneAt is when a root may go: as long after its end as it lived, so that
// roots of short life do not pile up.
func pruneAt(issuedAt, notAfter time.Time) time.Time {
	return notAfter.Add(min(pruneDelay, notAfter.Sub(issuedAt)))
}

// x509Family makes self-signed X.509 authorities.
type x509Family struct{ cfg *Config }

func (x509Family) name() string              { return "x509" }
func (x509Family) slots() [2]string          { return [2]string{"x509-ca-a", "x509-ca-b"} }
func (f x509Family) keyType() keys.Type      { return f.cfg.CAKeyType }
func (f x509Family) required() time.Duration { return f.cfg.required() }

// most: at a restart a minute, those dropped signed nothing that is younger than
// an hour.
func (x509Family) most() int { return maxMembers }

func (x509Family) shortLife() time.Duration { return 0 }

func (x509Family) journal(j *recordv1.Journal) *[]*recordv1.JournaledAuthority { return &j.X509 }

func (f x509Family) create(now time.Time, key keys.Key) (*member, error) {
	random, err := random16()
	if err != nil {
		return nil, err
	}
	public := key.Signer.Public()
	tmpl, err := svid.CATemplate(now, now.Add(f.cfg.CATTL), random, f.cfg.TrustDomain, f.cfg.CASubject, public)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of an authority: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, public, key.Signer)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of an authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back the certificate of an authority: %w", err)
	}
	return &member{
		state:    prepared,
		id:       hex.EncodeToString(cert.SubjectKeyId),
		slot:     key.ID,
		issuedAt: cert.NotBefore.Add(backdate),
		notAfter: cert.NotAfter,
		public:   public,
		pkix:     cert.RawSubjectPublicKeyInfo,
		chain:    []*x509.Certificate{cert},
		key:      key.Signer,
		ledger:   new(ledger),
	}, nil
}

// root is what relying parties must have: the last of the chain, which is the
// authority itself when it is self-signed.
func (x509Family) root(m *member) []byte {
	if len(m.chain) == 0 {
		return nil
	}
	return m.chain[len(m.chain)-1].Raw
}

func (f x509Family) published(b *registry.Bundle, m *member) bool {
	root := f.root(m)
	return slices.ContainsFunc(b.X509Authorities, func(a registry.X509Authority) bool { return bytes.Equal(a.DER, root) })
}

func (f x509Family) publish(b *registry.Bundle, m *member) {
	b.X509Authorities = append(b.X509Authorities, registry.X509Authority{DER: f.root(m)})
}

func (f x509Family) withdraw(b *registry.Bundle, m *member) {
	root := f.root(m)
	b.X509Authorities = slices.DeleteFunc(b.X509Authorities, func(a registry.X509Authority) bool { return bytes.Equal(a.DER, root) })
}

func (f x509Family) taint(b *registry.Bundle, m *member) *bool {
	root := f.root(m)
	for i := range b.X509Authorities {
		if bytes.Equal(b.X509Authorities[i].DER, root) {
			return &b.X509Authorities[i].Tainted
		}
	}
	return nil
}

func (x509Family) retire(m *member, _ time.Time) *member { return m.with(old) }

func (x509Family) mark(m *member) *member { return m }

// keepUntil: SVIDs live as long as the authority, and no longer.
func (x509Family) keepUntil(m *member) time.Time { return pruneAt(m.issuedAt, m.notAfter) }

func (x509Family) sweep(b *registry.Bundle, now time.Time) time.Time {
	var next time.Time
	b.X509Authorities = slices.DeleteFunc(b.X509Authorities, func(a registry.X509Authority) bool {
		c, err := x509.ParseCertificate(a.DER)
		if err != nil {
			return false // not ours to judge
		}
		due := pruneAt(c.NotBefore.Add(backdate), c.NotAfter)
		if !now.Before(due) {
			return true
		}
		next = earliest(next, due)
		return false
	})
	return next
}

func (f x509Family) arm(m *member) (*signer, error) {
	issuer, err := svid.NewX509Issuer(f.cfg.TrustDomain, m.chain)
	if err != nil {
		return nil, err
	}
	return &signer{member: m, x509: issuer}, nil
}

// earliest of two times, the zero one meaning never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func random16() (r [16]byte, err error) {
	if _, err = rand.Read(r[:]); err != nil {
		return r, fmt.Errorf("drawing a random number: %w", err)
	}
	return r, nil
}
