// Package failover measures how agents get along when their servers come and
// go: three servers over one store and many agents, in one process, with a TCP
// proxy before each server that can be cut or fall silent.
//
// It has no code but tests. Whole programs are test/integration's; what decides
// where an agent goes is proven in pkg/agent/route and pkg/agent.
//
// Read TestRollingRestart first, then the harness. SOAK makes the fleet
// larger and adds what takes as long as it takes.
package failover
