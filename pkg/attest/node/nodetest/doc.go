// Package nodetest is the specification of a node attestation method as a test
// suite: every pair of node.Prover and node.Verifier runs it on itself.
//
// It has no stream and no registry: [Exchange] connects the two halves in
// memory, within the limits the server sets. What becomes of a Result (a join
// token is used up, an agent remembered) is tested where that is done.
//
// Read [Run] first. The invariant: a verifier that passes answers any bytes
// with an error that says whose fault they are, or with a Result the server may
// believe; quickly, and without repeating the bytes.
package nodetest
