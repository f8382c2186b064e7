// Package authorityapi serves SPIRE's localauthority.v1: operators see this
// server's own authorities, prepare and activate the next ones by hand, and
// withdraw trust from old ones.
//
// It decides nothing: the state machine and its invariants are package ca's, and
// this package gives its refusals the status codes and texts that SPIRE's
// clients know. This server has no upstream authority: the calls about one serve
// to withdraw trust from what another server left in the bundle. It has no WIT
// authorities; the calls about them say so.
//
// Read [Service] first. The invariant: the intent of every change is in the
// audit log before it is made, and its outcome after.
package authorityapi
