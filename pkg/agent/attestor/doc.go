// Package attestor asks all configured workload attestors about a process and
// puts their answers together: the selectors the process has, and when to ask
// again.
//
// It attests nothing itself (the attestors below pkg/attest/workload do), keeps
// no answer for another call, and does not vouch for the process: the caller
// checks, after it has the answer, that the process is still the one that
// connected (peer.Process.Check).
//
// Read [Runner] first. The invariant: an attestor that fails or is late takes
// nothing away from the others, is reported each time, and adds no selector; a
// selector's type is always the name of the attestor it came from.
package attestor
