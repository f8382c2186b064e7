// Package svid says what an SVID is: the profiles, templates and checks of
// X509-SVIDs and JWT-SVIDs, as pure functions of their input.
//
// It does no I/O, has no clock of its own and signs nothing: it turns a request
// that passed every check into a one-shot approval, which package ca alone can
// turn into a signature. It is not a validator for workloads (go-spiffe is).
//
// Read [X509Request] first. The invariant: an approval exists only for content
// that passed its profile, it names everything that will be signed, and it can
// be used once. So a certificate or token that breaks its profile cannot reach
// a signing call.
package svid
