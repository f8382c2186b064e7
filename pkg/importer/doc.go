// Package importer copies what is registered on one server to another, while
// both run: entries with their IDs, the bundles of other trust domains, and
// federation relationships, by the public APIs of SPIRE. So that identities of
// both servers verify while agents move, it first adds the authorities of each
// server to the bundle of the other.
//
// It is not a backup and reads no database: agents are not copied, they attest
// anew; join tokens are not copied either, since no API tells them.
//
// Read [Run] first. The invariant: what is there already is never written
// again, and what differs is only written over when asked to, so that a run can
// be repeated, or end at any moment and begin anew.
package importer
