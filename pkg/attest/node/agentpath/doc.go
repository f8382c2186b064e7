// Package agentpath reads agent_path_template: how an operator says what the
// path of an agent's SPIFFE ID is made of.
//
// The language is text/template with the functions that SPIRE allows. It makes
// paths only: which values a template finds is the attestation method's
// business, and so is the SPIFFE ID.
//
// Read [Template] first. The invariant (S20): what a value contributes is a
// part of one path segment, as it is or not at all. A value that is empty, has
// a slash, a percent sign, dots only, or anything else that a SPIFFE ID's path
// has not, refuses the attestation; it is never escaped, cut or cleaned.
package agentpath
