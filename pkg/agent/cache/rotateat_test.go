package cache

import (
	"testing"
	"time"
)

// TestRotateAtLeavesTheAvailabilityTarget: an SVID that lives long enough is
// renewed while the target is left, others at half of their life.
func TestRotateAtLeavesTheAvailabilityTarget(t *testing.T) {
	t.Parallel()
	issued := time.Now()
	for _, c := range []struct{ target, ttl, least, most time.Duration }{
		{0, 40 * time.Hour, 18 * time.Hour, 22 * time.Hour},
		{24 * time.Hour, 40 * time.Hour, 14 * time.Hour, 16 * time.Hour},
		{24 * time.Hour, time.Hour, 27 * time.Minute, 33 * time.Minute},
	} {
		cache := &Cache{cfg: Config{AvailabilityTarget: c.target}}
		for range 100 {
			at := cache.rotateAt(&x509SVID{issued: issued, notAfter: issued.Add(c.ttl)}).Sub(issued)
			if at < c.least || at > c.most {
				t.Fatalf("%v of %v: after %v, want between %v and %v", c.target, c.ttl, at, c.least, c.most)
			}
		}
	}
}
