// Package registry is what the server remembers: entries, agents, join tokens,
// bundles and the journals of the authorities, as typed tables over a store.
//
// It keeps the rules that hold between records (an entry is unique by parent,
// SPIFFE ID and selectors; a join token makes one agent; an alias goes with its
// agent) inside single store updates. It does not decide who may call (package
// policy) nor who is entitled to what (package entitle), and it signs nothing.
//
// Read [Registry] first for writes, then [Index], the tables in memory as of one
// revision, from which every read is served. The invariant: the Index is
// changed only by commits of the store's log, in revision order, so that each
// answer says what was true at the revision it names.
package registry
