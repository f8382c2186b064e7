// Package csi is the agent's CSI node service: kubelet asks it to put the
// directory that has the Workload API's socket into pods with a volume of the
// driver csi.spiffe.io, read-only. It also answers kubelet's plugin
// registration, so that no other program is needed on the node.
//
// It stores nothing and has no controller: volumes are ephemeral and inline. It
// does not decide who gets an identity either: whoever reaches the socket is
// attested there (package workloadapi).
//
// Read [Service] first, then mounts and settle in mounts_linux.go.
//
// The invariants: at a target there is one mount, or none, whatever was called,
// how often, and wherever a process ended before. Nothing that a path says leads
// out of the directory that kubelet has for the pod's volume. A mount is as
// restricted as it will ever be before anybody can reach it.
package csi
