// Package entryapi serves SPIRE's entry.v1: registrations made, changed, listed
// and removed by admins, and the entries an agent may have, for SPIRE's agents,
// which ask for them again and again.
//
// It keeps nothing and judges nothing: the rules are in package registry, who
// gets what in package entitle, who may call in package policy. It reads from
// memory and answers a client's reads after its own writes.
//
// Read [Service] first. The invariants: every message that is sent is bounded in
// bytes, whatever a client's page size (S12); every item of a batch has a status
// of its own, in the order of the request; a list is never older than the store
// was when the call came.
package entryapi
