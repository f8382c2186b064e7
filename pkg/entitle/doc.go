// Package entitle answers which entries an agent may have and, the other way
// round, which agents a change touches.
//
// It is an index in memory, fed by the registry's commits; it reads no store,
// decides nothing about who may call what (package policy), and holds entries
// only by reference.
//
// The rule. An agent that is attested, not banned and not expired may have the
// entries whose parent is its own SPIFFE ID or the SPIFFE ID of a node alias (an
// entry parented on the server) all of whose selectors the agent has; and,
// transitively, the entries whose parent is the SPIFFE ID of an entry it may
// have. Aliases themselves are not given out. Entries that have expired, or
// that are of another trust domain, count as not there.
//
// Read [Graph] first. The invariant: after Apply of a commit, every answer is
// what the rule says of the tables at that commit's revision, and the Touched
// it returned names every agent and entry for which the answer changed.
package entitle
