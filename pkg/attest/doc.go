// Package attest holds the words that node attestation and workload
// attestation share: the [Selector], how selectors are compared, and the
// limits that keep attacker-controlled input small.
//
// It attests nothing. The two contracts live below it: package node (an agent
// proves to the server which machine it is on) and package workload (an agent
// finds out which process is on the other end of its socket).
//
// Read [Selector] first. The invariant: a Selector that came out of Parse or
// Validate has a type without a colon and a value that is not empty, so that
// "type:value" always splits the same way.
package attest
