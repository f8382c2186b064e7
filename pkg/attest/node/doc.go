// Package node is the contract of node attestation: how an agent proves to a
// server which machine it runs on, once, before it has an SVID.
//
// A method has two halves: a [Prover] in the agent and a [Verifier] in the
// server. They exchange opaque messages over the AttestAgent stream of SPIRE's
// agent.v1 API; neither sees the stream. Methods are in the folders below
// (jointoken, x509pop, k8spsat …), each with wire.go, prover.go and
// verifier.go. A verifier that can see nodes go is a [Watcher] too. Package
// nodetest is the suite every pair passes.
//
// Read [Verifier] first. The invariant: everything that reaches a Verifier is
// hostile until it says otherwise, so sizes, rounds and time are bounded here,
// before the method sees a byte (S07).
package node
