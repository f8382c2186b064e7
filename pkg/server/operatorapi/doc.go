// Package operatorapi serves credence.operator.v1 of the server: what is in the
// store, a copy of it while the server works, and moving this server's agents to
// others.
//
// It is not the store, nor the format of its copies, which is package dump's, nor
// the feed, which asks the agents to go. What is done to a store that no server
// works on is the command line's.
//
// Read [Service] first. The invariant: a backup that ends with a trailer is what
// the store held at the revision it names, and every backup and drain is in the
// audit log with who asked for it.
package operatorapi
