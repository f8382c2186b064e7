// Package agentapi is SPIRE's agent.v1 service: agents attest and renew, and
// operators list, ban and evict them and make join tokens.
//
// It also holds the [Authenticator], which says at every call whether the
// caller is an agent that may still act, and ends the streams of one that may
// not any more. It verifies no certificate chain (the server's interceptor did)
// and knows no attestation method: those are node.Verifiers, by name.
//
// Read [Authenticator] first, then Service.AttestAgent. The invariant: what an
// agent may do is decided by its record in the registry at the moment of the
// call or message, never by the connection it came on (S25), and an SVID is
// never answered before its serial number is on disk (S31).
package agentapi
