// Package x509pop is the node attestor x509pop: an agent shows an X.509
// certificate that its machine was given by somebody else, and proves that it
// has the private key.
//
// In the mode external_pki the certificate is of a PKI that the operator names;
// in the mode spiffe it is an X509-SVID of the trust domain itself. Messages,
// selectors and agent IDs are SPIRE's in both. The package keeps no keys: the
// agent's are read from files each time they are needed.
//
// Read [Verifier] first. The invariant (S07): a certificate's key is used for
// nothing before a trusted authority has signed that certificate, and sizes are
// checked before that; so a stranger can make the server verify signatures of
// its own authorities only, a few of them. A signature is taken for the nonce
// of its own attestation alone (S24).
package x509pop
