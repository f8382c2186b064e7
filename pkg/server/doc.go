// Package server assembles the control plane: it reads the configuration, opens
// the store, builds the authority, the registry's index and the API rooms below
// it, and serves them on a TCP listener with TLS and on a Unix socket for the
// local admin.
//
// It holds no rules of its own about entries, agents or certificates: those are
// in the packages it puts together, and the choice of which implementation goes
// with which configured name is in assemble.go, nowhere else.
//
// Read [Config] first, then [New] and [Server.Run]. The invariants: New starts
// nothing and leaves nothing behind when it fails; every call, on every
// listener, passes the one chain of interceptors that finds out who the caller
// is now and asks package policy, per call and for a stream's whole life.
package server
