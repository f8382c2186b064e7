// Package integration tells whole-program stories: the two binaries, built as
// users get them, over real sockets, with go-spiffe and gRPC as their clients.
//
// It has no code but tests: one file a story, named for what happens in it, and
// a harness in harness_…_test.go. It knows configuration files, command lines
// and public APIs, and nothing of what is behind them; what a single room can
// prove is proven in that room.
//
// Read restart_test.go first, it is short; then world in harness_world_test.go.
//
// The invariants: every wait is bounded and waits for something (a health
// check, an API, a line of a log); every process is ended by its own ID; after
// each story every log is searched for its secrets and for reports of the race
// detector.
package integration
