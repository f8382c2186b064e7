// Package keys is the contract of a key manager: it makes private keys, lists
// them and signs with them, and never hands one out.
//
// It does not know what a key is for; package ca does, and names its keys by
// slot. Implementations are in the folders below (memkey, diskkey, later
// plugins); package keystest is the suite each of them passes.
//
// Read [Manager] first. The invariant: after Generate returned, the key is as
// durable as the manager promises, and a crash in the middle leaves the old
// key or the new one under its id, never neither.
package keys
