// Package workloadapi serves the SPIFFE Workload API to the processes of this
// machine: X509-SVIDs, JWT-SVIDs, bundles, and the validation of JWT-SVIDs, with
// grpc.health.v1 and server reflection on the same socket.
//
// It holds no identity (package cache does) and proves nothing about the caller
// (package peer does, and attestors say what the process is worth). Profiles it
// does not serve answer UNIMPLEMENTED.
//
// Read [Service] first, then stream.go: the life of one stream.
//
// The invariant: every RPC, and every message of a stream, goes to a process
// that was attested for it and is still, by the kernel's word, the one that
// connected. Tokens and keys are never logged.
package workloadapi
