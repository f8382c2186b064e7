// Package apitest puts the real rooms of a server together in memory for the
// tests of the API rooms: the embedded store in a temporary directory, the
// registry and its follower, a P-256 authority, and gRPC with mutual TLS over
// bufconn.
//
// It is for tests only. It fakes nothing but the network, and it is not the
// server: package server has the listeners, the policy and the lifecycle.
//
// Read [World] first. The invariant: the order in which a commit reaches the
// rooms is that of package server.
package apitest
