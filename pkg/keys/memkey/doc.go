// Package memkey keeps keys in the memory of this process: nothing secret is at
// rest, and a restart begins with new keys. It is SPIRE's KeyManager "memory".
//
// It is not for servers whose authorities must outlive a restart: see diskkey.
//
// Read [Manager]. The invariant: a key leaves the process in no form but its
// signatures.
package memkey
