// Package workloadtest is the specification of a workload attestor as a test
// suite: every implementation of workload.Attestor runs it on itself.
//
// It knows nothing of real processes: [Process] is one made of a map, which
// can die at any access, stall, and count. What a real process can do to the
// agent is tested in package peer.
//
// Read [Run] first. The invariant: an attestor that passes either tells the
// facts of the process it was given, or fails; it never tells a part of them,
// or another's.
package workloadtest
