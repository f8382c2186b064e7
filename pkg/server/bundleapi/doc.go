// Package bundleapi serves SPIRE's bundle.v1: the authorities of this trust
// domain, for anyone, and those of others, for agents and operators.
//
// It decides no rule of bundles (package registry) and makes no authority: those
// of this server are package ca's, which lives with what is appended here.
//
// Read [Service] first. The invariants: GetBundle answers from memory, without a
// look at the store, so that a stranger who asks costs next to nothing; and every
// change reaches agents by the store's log, so that nothing here tells them.
package bundleapi
