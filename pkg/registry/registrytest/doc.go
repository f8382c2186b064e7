// Package registrytest puts a registry and its index over a store of their own,
// for the tests of what is served from them.
//
// It is the real parts, not a fake of them. What is around them on a server,
// such as authorities and agents' streams, is package apitest.
//
// Read [World] first. The invariant: all that a test started has ended when the
// test has.
package registrytest
