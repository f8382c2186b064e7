// Package operatorv1 is what operators ask of a running server and a running
// agent beside SPIRE's APIs, credence.operator.v1: the generated messages and
// services.
//
// It has neither half: the server's is package operatorapi, the agent's is
// package adminapi, and both are called by the command line alone. Read
// operator.proto first, then agent.proto. The invariant: every method is for
// whoever may open the admin's socket, and none hands out an identity or a
// private key.
package operatorv1
