// Package ca is the authority of a server: it makes the keys that sign
// X509-SVIDs and JWT-SVIDs, publishes their public halves, rotates them on time
// and signs.
//
// It decides nothing about who may have what (packages entitle and policy), nor
// what an SVID may say (package svid). It keeps its journal and its place in the
// bundle through the registry, and its keys in a keys.Manager.
//
// One state machine (rotor) drives each kind of authority: prepared, active,
// old. Every step is first committed to the journal and the bundle, in one
// store update, then read back, then acted on, so that a crash between any two
// is healed by loading the journal again.
//
// Read [Authority] first. The invariants: nothing is signed by a key whose
// public half is not in the bundle that was last read back; nothing outlives
// the authority that signed it; what was signed verifies against the published
// bundle for its whole life; and issuing never waits for the store or for a
// rotation.
package ca
