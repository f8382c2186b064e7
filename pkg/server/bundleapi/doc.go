// Package bundleapi serves SPIRE's bundle.v1: the authorities of this trust
// domain, for anyone, and those of others, for agents and operators.
//
// It changes no bundle: this server's own is changed by package ca alone, and
// the calls that set those of other trust domains are not served yet.
//
// Read [Service] first. The invariant: GetBundle answers from memory, without a
// look at the store, so that a stranger who asks costs next to nothing.
package bundleapi
