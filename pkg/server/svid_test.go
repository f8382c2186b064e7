package server

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/svid"
)

// TestOwnSVIDIsRenewedAtHalfLife: for a life shorter than what NotBefore is
// backdated by, half of all the certificate says is before it was issued.
func TestOwnSVIDIsRenewedAtHalfLife(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for ttl, want := range map[time.Duration]time.Duration{
		time.Hour:        30 * time.Minute,
		time.Minute:      30 * time.Second,
		2 * time.Second:  time.Second,
		0:                leastRenewal,
		-5 * time.Second: leastRenewal,
	} {
		var o ownSVID
		o.cert.Store(&tls.Certificate{Leaf: &x509.Certificate{NotBefore: now.Add(-svid.Backdate), NotAfter: now.Add(ttl)}})
		if got := o.untilRenewal(now); got != want {
			t.Errorf("an SVID that lives %v is renewed after %v, want %v", ttl, got, want)
		}
	}
}
