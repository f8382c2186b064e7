package workloadapi

import (
	"crypto/sha256"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/ratelimit"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Rates are calls a second, and at once, of each set of selectors; of a stream,
// how often it is opened. 0 is no limit. Callers without selectors are one.
type Rates struct {
	FetchX509SVID, FetchJWTSVID, FetchX509Bundles, FetchJWTBundles int
}

// rates are by method. Those without a limit are not there.
type rates map[string]*ratelimit.Limiter[[sha256.Size]byte]

func newRates(cfg Rates) rates {
	r := make(rates)
	for method, perSecond := range map[string]int{
		"FetchX509SVID": cfg.FetchX509SVID, "FetchJWTSVID": cfg.FetchJWTSVID,
		"FetchX509Bundles": cfg.FetchX509Bundles, "FetchJWTBundles": cfg.FetchJWTBundles,
	} {
		if perSecond > 0 {
			r[method] = ratelimit.New[[sha256.Size]byte](perSecond)
		}
	}
	return r
}

// allow refuses a call that is one too many, in SPIRE's words. The caller has
// been attested.
func (s *Service) allow(method string, selectors attest.Selectors) error {
	limit, ok := s.rates[method]
	if !ok || limit.Allow(time.Now(), digest(selectors), 1) {
		return nil
	}
	s.metrics.refused.WithLabelValues("rate").Inc()
	return status.Errorf(codes.Unavailable, "rate limit exceeded for /%s/%s", serviceName, method)
}

// digest stands for a set of selectors, which are sorted, so that the table does
// not hold them.
func digest(selectors attest.Selectors) (out [sha256.Size]byte) {
	h := sha256.New()
	for _, sel := range selectors {
		h.Write([]byte(sel.Type))
		h.Write([]byte{0})
		h.Write([]byte(sel.Value))
		h.Write([]byte{0})
	}
	h.Sum(out[:0])
	return out
}

// Refused counts what was refused before a call was reached, such as by
// peer.Config.Refused.
func (s *Service) Refused(reason string) { s.metrics.refused.WithLabelValues(reason).Inc() }
