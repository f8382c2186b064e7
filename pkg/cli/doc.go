// Package cli is what the command lines of credence-server and credence-agent
// have in common: SPIRE's way of writing flags, exit codes, errors with a hint,
// pretty, JSON and YAML output, progress, where the sockets are, and how to
// reach them.
//
// It has no verbs; those are in cmd/server and cmd/agent, one file each. It
// knows no API either: it dials, and prints whatever message it is given.
//
// Read [Run] first, then [Persona]: the same binary called as spire-server or
// spire-agent has SPIRE's defaults. The invariant: nothing here ends the
// process or touches its standard streams; main passes both in.
package cli
