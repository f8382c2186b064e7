// Package route chooses, among the addresses an agent is configured with, the
// server it is connected to, and connects to it.
//
// It knows no SVID and no feed: what secures a connection is the caller's
// [Security], and that a server does not do is for the caller to [Route.Blame].
// It keeps no connection alive and starts nothing that outlives a call.
//
// Read [Route.Connect] first. The invariant: one server at a time, the same one
// as long as it is fine; of the others any may be next, and one that has failed
// or is being drained is tried when no other is left.
package route
