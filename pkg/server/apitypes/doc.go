// Package apitypes is the registry's nouns in the messages of SPIRE's API
// (spire.api.types), and back: SPIFFE IDs, selectors, entries and bundles.
//
// It validates no rule of the registry: what comes from a client is parsed
// here, and judged by package registry. It knows no service and no caller.
//
// Read [Entry] first, then [AppendEntry], which writes the same message as bytes
// without building it: long lists are made of those. The invariant: both write
// the same message for the same entry and mask, and what [ParseEntry] reads
// back is the entry that was written, field by field (S15).
package apitypes
