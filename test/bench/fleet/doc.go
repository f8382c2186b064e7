// Package fleet is thousands of node agents in one process, for load: each has
// its own identity, attested and renewed as the real agent's is, its own
// connection with mutual TLS, its own push stream followed by package feed, and
// a cache that keeps the digest right and of each entry nothing but a number.
//
// It is not an agent: it serves no workloads and keeps nothing on disk but the
// evidence of its nodes. It starts no server and measures none; package main of
// the harness does.
//
// Read [Fleet] first, then agent.go, which is one agent's life; wire.go and
// cache.go are how 5,000 agents with 10,000 entries each fit into memory.
//
// The invariant: an agent counts as in sync only when its own digest equals the
// server's, so a figure of this package is one of agents that hold what they
// should.
package fleet
