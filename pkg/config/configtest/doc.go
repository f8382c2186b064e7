// Package configtest is for tests that hold the configuration of a program
// against SPIRE's.
//
// It reads the source of SPIRE where a developer has it, and nothing of it is
// copied into this repository: a test that finds none is skipped with that
// reason. It is not a mock, and no program imports it.
//
// Read [SPIREKeys] first. The invariant: what it returns is what SPIRE's own
// decoder would read, by the tags of SPIRE's structs.
package configtest
