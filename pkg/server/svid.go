package server

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/retry"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/credence-id/credence/pkg/tlspolicy"
)

// ownSVID is the X509-SVID that the server shows on its TLS listener. Its key is
// new for each and is never written anywhere. Connections that are open when it
// is replaced stay as they are.
type ownSVID struct {
	id        spiffeid.ID
	authority *ca.Authority
	log       *slog.Logger

	cert atomic.Pointer[tls.Certificate]
	// poke asks Run for a new one at once.
	poke chan struct{}
}

func newOwnSVID(td spiffeid.TrustDomain, authority *ca.Authority, log *slog.Logger) *ownSVID {
	return &ownSVID{id: registry.ServerID(td), authority: authority, log: log, poke: make(chan struct{}, 1)}
}

// renew gets a new SVID and shows it from now on.
func (o *ownSVID) renew(ctx context.Context, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the server's key: %w", err)
	}
	issued, err := o.authority.IssueX509(ctx, now, svid.X509Request{Kind: svid.Server, ID: o.id, PublicKey: key.Public()})
	if err != nil {
		return fmt.Errorf("issuing the server's own X509-SVID: %w", err)
	}
	cert, err := tlsCertificate(issued.Chain, key)
	if err != nil {
		return fmt.Errorf("reading back the server's own X509-SVID: %w", err)
	}
	o.cert.Store(cert)
	o.log.InfoContext(ctx, "server has a new X509-SVID", telemetry.SPIFFEID, o.id.String(),
		telemetry.Serial, issued.Serial, telemetry.NotAfter, issued.NotAfter)
	return nil
}

func tlsCertificate(chain [][]byte, key crypto.PrivateKey) (*tls.Certificate, error) {
	certs, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: certs[0]}, nil
}

func parseChain(ders [][]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		var err error
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// Run renews the SVID at half of its life, and when asked to, until ctx ends.
func (o *ownSVID) Run(ctx context.Context) error {
	pauses := retry.Pauses()
	wait := o.untilRenewal(time.Now())
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-o.poke:
			timer.Stop()
		case <-timer.C:
		}
		if err := o.renew(ctx, time.Now()); err != nil {
			wait = pauses.NextBackOff()
			o.log.ErrorContext(ctx, "server's own X509-SVID could not be renewed", telemetry.Err, err, telemetry.Retry, wait)
			continue
		}
		pauses.Reset()
		wait = o.untilRenewal(time.Now())
	}
}

// leastRenewal is how long an SVID is used at least.
const leastRenewal = 100 * time.Millisecond

// untilRenewal is the time to half of the SVID's life, which does not begin at
// NotBefore: that is earlier, for others' clocks. It is never so short that
// renewing would be all the server does.
func (o *ownSVID) untilRenewal(now time.Time) time.Duration {
	leaf := o.cert.Load().Leaf
	return max(leastRenewal, svid.RotateAt(leaf.NotBefore, leaf.NotAfter, 0.5).Sub(now))
}

// observe asks for a new SVID when the one there does not verify any more, such
// as after its authority was revoked, or when that is tainted.
func (o *ownSVID) observe(r *roots, now time.Time) {
	cert := o.cert.Load()
	if cert == nil {
		return
	}
	if chain, err := parseChain(cert.Certificate); err == nil {
		if _, err := r.verify(chain, now); err == nil && !r.tainted(chain) {
			return
		}
	}
	select {
	case o.poke <- struct{}{}:
	default:
	}
}

// chain is the SVID shown now, leaf first.
func (o *ownSVID) chain() []*x509.Certificate {
	chain, err := parseChain(o.cert.Load().Certificate)
	if err != nil {
		return nil // it was parsed when it was issued
	}
	return chain
}

// get is tls.Config.GetCertificate.
func (o *ownSVID) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert := o.cert.Load()
	if cert == nil {
		return nil, errors.New("the server has no X509-SVID yet")
	}
	return cert, nil
}

// tlsConfig is that of the TLS listener. Clients may come without a certificate;
// one that is shown must be an X509-SVID of this trust domain. There are no
// session tickets: a resumed session would carry over what was verified when it
// began. fresh is [roots.verifyAnew]'s.
func (o *ownSVID) tlsConfig(s Settings, r *roots, fresh func(context.Context) error) *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tlsVersions[s.TLSMinVersion],
		GetCertificate:         o.get,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
	}
	if s.Experimental.RequirePQKEM {
		tlspolicy.RequirePostQuantum(cfg)
	}
	// Only here does a handshake have a context to wait with.
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		one := cfg.Clone()
		one.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			return r.verifyAnew(hello.Context(), state.PeerCertificates, fresh)
		}
		return one, nil
	}
	return cfg
}
