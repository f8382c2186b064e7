package peers

// differences are the calls whose answers are not SPIRE's, and why. Each is also
// in docs/spire-differences.md.
var differences = map[string]string{}
