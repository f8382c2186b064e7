package svid

import "time"

// Two clocks meet at NotBefore, at iat and at exp.
const (
	// Backdate is how long before the time of issue a certificate's NotBefore
	// lies, for verifiers whose clock is behind.
	Backdate = 10 * time.Second
	// Skew is how far the clock of a token's issuer may be off when we verify.
	Skew = time.Minute
)

// The latest moments before expiry at which an authority's successor is
// prepared and activated; SPIRE's values, on which operators' alerts rely.
const (
	maxPrepareLead  = 30 * 24 * time.Hour
	maxActivateLead = 7 * 24 * time.Hour
)

// PrepareAt is when the successor of an authority is made and published: at
// half of its life, at most 30 days before its end.
func PrepareAt(issuedAt, notAfter time.Time) time.Time {
	return notAfter.Add(-min(notAfter.Sub(issuedAt)/2, maxPrepareLead))
}

// ActivateAt is when the successor of an authority begins to sign: at 5/6 of
// its life, at most 7 days before its end.
func ActivateAt(issuedAt, notAfter time.Time) time.Time {
	return notAfter.Add(-min(notAfter.Sub(issuedAt)/6, maxActivateLead))
}

// RotateAt is when the holder of an X509-SVID asks for the next: at half of its
// life, give or take 10 %. spread, in [0,1), is drawn once per SVID, so that
// SVIDs issued together are not renewed together. notBefore is the
// certificate's, [Backdate] included.
func RotateAt(notBefore, notAfter time.Time, spread float64) time.Time {
	issuedAt := notBefore.Add(Backdate)
	half := notAfter.Sub(issuedAt) / 2
	if half <= 0 {
		return notBefore
	}
	return issuedAt.Add(time.Duration(float64(half) * (0.9 + 0.2*spread)))
}

// minGrace is how long an X509-SVID is used, at the least, before RotateFor asks
// for the next; as in SPIRE.
const minGrace = 12 * time.Hour

// RotateFor is when the holder of an X509-SVID that is to outlast an outage of
// target asks for the next: at the time given (of [RotateAt]), or so much sooner
// that target is left. An SVID that lives too short for that, less than 12 h
// longer than target, is asked for at the time given; so is any when target is 0.
// spread, in [0,1), is as for RotateAt.
func RotateFor(target time.Duration, at, issuedAt, notAfter time.Time, spread float64) time.Time {
	grace := notAfter.Sub(issuedAt) - target
	if target <= 0 || grace < minGrace {
		return at
	}
	sooner := issuedAt.Add(time.Duration(float64(grace) * (1 - 0.1*spread)))
	if sooner.Before(at) {
		return sooner
	}
	return at
}
