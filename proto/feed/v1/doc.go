// Package feedv1 is the push stream from server to agent, credence.feed.v1: the
// generated messages and service, and the arithmetic of its digest, which both
// halves must do alike.
//
// It has neither half of the stream: those are packages feedapi (server) and
// feed (agent). Read feed.proto first, then digest.go. The invariant: the same
// entries at the same revisions give the same digest, in whatever order they
// came.
package feedv1
