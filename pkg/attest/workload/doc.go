// Package workload is the contract of a workload attestor: it looks at a
// process that is connected to the agent's socket and says what is true of it,
// as selectors.
//
// It does not find out who is connected (package peer does, and proves it with
// the kernel's help) and does not decide what the selectors are worth (the
// agent's cache does). Attestors are in the folders below: unix and k8s,
// later docker, systemd. Package workloadtest is the suite each of them passes.
//
// Read [Attestor] first. The invariant: an attestor reads a process only
// through the [Process] it was given, so that a reused PID cannot be mistaken
// for the process that connected.
package workload
