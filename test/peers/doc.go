// Package peers plays our programs against those of a real SPIRE, and against
// third-party programs made for SPIRE: its agent on our server, our agent on its
// server, its command line on our sockets, its server's answers beside ours.
//
// It has no code but tests, and none of the foreign programs: they are built by
// hand and named by the environment. SPIRE_BIN is a directory with spire-server
// and spire-agent of release 1.15; SPIFFE_HELPER_BIN, GHOSTUNNEL_BIN and
// CONTROLLER_MANAGER_BIN are files. What is not named is skipped, with the reason.
//
// Read side in side_test.go first, then the table in calls_test.go. The
// invariant: what differs on purpose is in the table of differences_test.go with
// its reason, and nothing else differs; a difference that is gone fails too.
package peers
