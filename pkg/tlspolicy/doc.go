// Package tlspolicy is what an operator may ask of every TLS connection of a
// program, on both sides: that its key exchange withstands a quantum computer
// (experimental.require_pq_kem).
//
// It decides nothing about certificates: who verifies whom is said where the
// connection is made.
//
// Read [RequirePostQuantum]. The invariant: a policy only takes away from what
// a configuration allows.
package tlspolicy
