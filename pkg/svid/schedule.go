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
