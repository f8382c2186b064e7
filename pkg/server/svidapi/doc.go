// Package svidapi is SPIRE's svid.v1 service: agents get the SVIDs of the
// entries they are entitled to, and operators mint SVIDs by name.
//
// It decides neither who is entitled to what (package entitle) nor what an SVID
// may say (package svid), and it signs nothing itself (package ca).
//
// Read [Service] first. The invariant: for an agent, the SPIFFE ID, the DNS names
// and the lifetime of an SVID come from an entry the agent is entitled to at
// that moment, and from nowhere else; of its CSR only the public key is used
// (S19).
package svidapi
