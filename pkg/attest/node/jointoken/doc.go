// Package jointoken is the node attestor join_token: a one-time secret that an
// operator takes from the server to the node.
//
// It reads and checks the token's form; whether the token is good is found out
// by the registry, in the same store update that remembers the agent, so that a
// token makes one agent however many attempts run at once (S03). It knows
// nothing of the node: there are no selectors.
//
// Read [Verifier] first. The invariant: the agent ID is the token as one path
// segment, taken as it is or refused, never normalised (S20).
package jointoken
