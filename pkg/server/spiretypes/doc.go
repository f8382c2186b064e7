// Package spiretypes turns the registry's nouns into SPIRE's messages
// (spire.api.types) and SPIFFE IDs and selectors back.
//
// It is the one converter for the API rooms and the feed. It is not a mask (each
// API has its own) and it validates only what must hold for a value of the
// type to exist; the rules of a noun are the registry's.
//
// Read [FromEntry] first. The invariant: every field of a noun that SPIRE's
// message can carry is in it, and a message shares no memory that its receiver
// may write to with the noun, which is shared and immutable.
package spiretypes
