// Package svid says what an SVID is: the profiles, templates and checks of
// X509-SVIDs and JWT-SVIDs, as pure functions of their input.
//
// It does no I/O, has no clock of its own, draws no random numbers and holds no
// private key: it turns a request that passed every check into a one-shot
// approval, for which package ca makes the signature. Workloads validate what
// they get with go-spiffe; ValidateJWT is for our agent, which does it for them.
//
// Read [X509Request] first, then [X509Issuer.Approve]. The invariant: an
// approval exists only for content that passed its profile, it names everything
// that will be signed, and it can be used once. So a certificate or token that
// breaks its profile cannot reach a signing call.
package svid
