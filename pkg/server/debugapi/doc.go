// Package debugapi serves SPIRE's debug.v1 of the server: what it counts, how
// long it runs, and how its own X509-SVID verifies.
//
// It is not a profiler, and changes nothing.
//
// Read [Service] first. The invariant: what is counted is one server's view of
// the store, and counting never asks the store, so that the answer comes also
// when that is away.
package debugapi
