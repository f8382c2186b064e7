// Package adminapi is what the agent's admin socket serves: SPIRE's
// spire.agent.debug.v1 (what the agent is and holds) and
// spire.api.agent.logger.v1 (the log's level while it runs), and our own
// credence.operator.v1.AgentOperator (for how long it could go on without a
// server).
//
// It is not for workloads: its socket is in another directory, and whoever can
// open it is an operator of this node. Nothing here hands out an identity;
// calls of other services are answered with Unimplemented.
//
// Read [Service] first. The invariant: an answer is what is true when it is
// asked for. SPIRE's agent keeps its answer for 5 seconds; this one keeps none.
package adminapi
