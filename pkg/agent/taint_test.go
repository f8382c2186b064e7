package agent

import (
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// bundleOf is a bundle as the server sends it; tainted are the authorities from
// the first on.
func bundleOf(tainted int, as ...*authority) *types.Bundle {
	b := &types.Bundle{TrustDomain: testTD.Name()}
	for i, a := range as {
		b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: a.cert.Raw, Tainted: i < tainted})
	}
	return b
}

// TestTaintedOwnSVIDIsRenewedAtOnce: when the agent's own SVID is renewed, by
// what the server has said of its authority.
func TestTaintedOwnSVIDIsRenewedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old, fresh := newAuthority(t, time.Now().Add(24*time.Hour)), newAuthority(t, time.Now().Add(48*time.Hour))
		begin := time.Now()
		chain := func(a *authority) []*x509.Certificate {
			return []*x509.Certificate{{AuthorityKeyId: a.cert.SubjectKeyId}}
		}
		time.Sleep(time.Minute)
		tr := &trust{td: testTD, news: make(chan struct{}, 1)}
		a := &Agent{trust: tr}
		if _, yes := tr.distrusts(chain(old)); yes {
			t.Error("distrusted before a bundle is known")
		}
		learn := func(b *types.Bundle) {
			t.Helper()
			if err := tr.learn(b); err != nil {
				t.Fatal(err)
			}
			select {
			case <-tr.news:
			default:
				t.Error("nobody is told of the bundle")
			}
		}
		learn(bundleOf(0, old, fresh))
		if _, yes := tr.distrusts(chain(old)); yes {
			t.Error("distrusted before it is tainted")
		}
		learn(bundleOf(1, old, fresh))
		tainted := time.Now()
		time.Sleep(time.Minute)
		learn(bundleOf(1, old, fresh)) // what is said twice was said the first time
		now := time.Now()
		half := now.Add(30 * time.Minute)

		for name, c := range map[string]struct {
			svid        *nodeSVID
			least, most time.Time
		}{
			"of another authority":       {&nodeSVID{SVID: &x509svid.SVID{Certificates: chain(fresh)}, renewAt: half, taken: begin}, half, half},
			"taken before":               {&nodeSVID{SVID: &x509svid.SVID{Certificates: chain(old)}, renewAt: half, taken: begin}, now, now.Add(taintedSpread)},
			"of an earlier run":          {&nodeSVID{SVID: &x509svid.SVID{Certificates: chain(old)}, renewAt: half}, now, now.Add(taintedSpread)},
			"given although tainted":     {&nodeSVID{SVID: &x509svid.SVID{Certificates: chain(old)}, renewAt: half, taken: now}, now.Add(taintedPause), now.Add(taintedPause)},
			"given so, and due sooner":   {&nodeSVID{SVID: &x509svid.SVID{Certificates: chain(old)}, renewAt: now, taken: now}, now, now},
			"by an intermediate":         {&nodeSVID{SVID: &x509svid.SVID{Certificates: append(chain(fresh), chain(old)...)}, renewAt: half, taken: begin}, now, now.Add(taintedSpread)},
			"given just before it":       {&nodeSVID{SVID: &x509svid.SVID{Certificates: chain(old)}, renewAt: half, taken: tainted.Add(-time.Millisecond)}, now, now.Add(taintedSpread)},
			"overdue although untainted": {&nodeSVID{SVID: &x509svid.SVID{Certificates: chain(fresh)}, renewAt: begin, taken: begin}, begin, begin},
		} {
			if at := a.renewalTime(c.svid, now); at.Before(c.least) || at.After(c.most) {
				t.Errorf("%s: renewed in %s, want %s to %s", name, at.Sub(now), c.least.Sub(now), c.most.Sub(now))
			}
		}

		learn(bundleOf(0, fresh)) // revoked
		if _, yes := tr.distrusts(chain(old)); yes {
			t.Error("an authority that is not there any more is not tainted: its SVIDs are no good at all")
		}
	})
}
