// Package agent assembles the node agent: it proves to a server which machine
// this is, keeps the agent's own X509-SVID fresh, follows the server's push
// stream into the cache, and serves the Workload API from it.
//
// What the cache holds and how workloads are attested is decided in the
// packages below it (cache, peer, workloadapi); the concrete attestors and key
// managers are chosen in assemble.go. It never imports the server.
//
// Read [Agent.Run] first, then link.go, which is the life of one connection.
// The invariant: losing the server takes nothing from workloads that have an
// identity, and being banned takes everything, at once.
package agent
