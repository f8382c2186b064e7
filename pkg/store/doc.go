// Package store is the contract between Credence and the place where it
// remembers things: an ordered map of bytes with serializable updates and a
// resumable, gap-free log of everything that was committed.
//
// It holds interfaces, sentinel errors and limits; it is not an engine (see
// the folders below: bolt, later etcd) and knows nothing of entries, agents or
// bundles (see package registry).
//
// Read [Store] first. The invariant every engine keeps: the [Revision] of a
// store only grows, each committed Update that wrote something has a revision
// of its own, and View, Watch and Head agree on what was true at it. Package
// storetest is the specification in executable form; an engine that passes it
// may be put under everything above.
package store
