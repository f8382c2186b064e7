package agent

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// Formats of a trust bundle file.
const (
	formatPEM    = "pem"
	formatSPIFFE = "spiffe"
)

// trust is what the agent believes the server's authorities to be: first from
// its bootstrap, then from what the server itself says over a connection that
// was verified. It is a bundle source for TLS.
type trust struct {
	td      spiffeid.TrustDomain
	current atomic.Pointer[x509bundle.Bundle]
	// tainted is when each tainted authority, by its subject key ID, was first
	// heard of; the map is replaced as a whole.
	tainted atomic.Pointer[map[string]time.Time]
	// news, of capacity 1, has a value when there may be another one.
	news chan struct{}
}

// GetX509BundleForTrustDomain is x509bundle.Source.
func (t *trust) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	b := t.current.Load()
	if b == nil {
		return nil, errors.New("the server's trust bundle is not known yet")
	}
	return b.GetX509BundleForTrustDomain(td)
}

// learn takes the trust domain's own bundle as the server sent it. Tainted
// authorities still verify: what they signed is being replaced, not refused.
func (t *trust) learn(b *types.Bundle) error {
	bundle, tainted := x509bundle.New(t.td), map[string]time.Time{}
	for _, a := range b.GetX509Authorities() {
		certs, err := x509.ParseCertificates(a.GetAsn1())
		if err != nil {
			return fmt.Errorf("parsing an authority of the bundle: %w", err)
		}
		for _, c := range certs {
			bundle.AddX509Authority(c)
			if a.GetTainted() {
				tainted[string(c.SubjectKeyId)] = t.taintedSince(c.SubjectKeyId, time.Now())
			}
		}
	}
	if bundle.Empty() {
		return errors.New("the server's bundle has no X.509 authority")
	}
	t.current.Store(bundle)
	t.tainted.Store(&tainted)
	select {
	case t.news <- struct{}{}:
	default:
	}
	return nil
}

// taintedSince is when the authority was first heard of as tainted, and now if
// it was not.
func (t *trust) taintedSince(keyID []byte, now time.Time) time.Time {
	if known := t.tainted.Load(); known != nil {
		if since, ok := (*known)[string(keyID)]; ok {
			return since
		}
	}
	return now
}

// distrusts says whether an authority of the chain is tainted, and since when.
func (t *trust) distrusts(chain []*x509.Certificate) (since time.Time, yes bool) {
	known := t.tainted.Load()
	if known == nil {
		return time.Time{}, false
	}
	for _, c := range chain {
		if at, ok := (*known)[string(c.AuthorityKeyId)]; ok {
			return at, true
		}
	}
	return time.Time{}, false
}

// usable says whether any authority is still within its time.
func (t *trust) usable(now time.Time) bool {
	b := t.current.Load()
	if b == nil {
		return false
	}
	for _, c := range b.X509Authorities() {
		if now.Before(c.NotAfter) {
			return true
		}
	}
	return false
}

// loadBundle reads a bootstrap bundle file.
func loadBundle(td spiffeid.TrustDomain, path, format string) (*x509bundle.Bundle, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		show := "credence-server bundle show"
		if format == formatSPIFFE {
			show += " -format spiffe"
		}
		return nil, fmt.Errorf("%w; write the output of `%s` there", err, show)
	}
	bundle, err := parseBundle(td, data, format)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if bundle.Empty() {
		return nil, fmt.Errorf("%s has no certificate", path)
	}
	return bundle, nil
}

func parseBundle(td spiffeid.TrustDomain, data []byte, format string) (*x509bundle.Bundle, error) {
	if format == formatSPIFFE {
		b, err := spiffebundle.Parse(td, data)
		if err != nil {
			return nil, fmt.Errorf("not a SPIFFE bundle document (agent.trust_bundle_format is spiffe): %w", err)
		}
		return b.X509Bundle(), nil
	}
	if block, _ := pem.Decode(data); block == nil {
		return nil, errors.New("no PEM block found (agent.trust_bundle_format is pem)")
	}
	return x509bundle.Parse(td, data)
}
