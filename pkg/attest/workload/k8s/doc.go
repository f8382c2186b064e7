// Package k8s is the workload attestor `k8s`: which pod and which container a
// process runs in, and what Kubernetes says of these. Selectors and
// configuration are those of SPIRE's attestor of the same name;
// docs/attestors/k8s.md says how far each selector can be trusted.
//
// The container and the pod's UID come from the process's cgroups (cgroup.go,
// locate.go). What is known of pods comes from a watch on the API server that
// is limited to this node (watch.go) or, where that is not allowed, from the
// kubelet (kubelet.go); both fill one store (pods.go), which answers from memory
// and closes a channel when an answer has changed. There is no client library:
// rest.go speaks the few calls that are needed, so that the agent stays small.
//
// Read [Attestor] first. The invariant: a process gets the selectors of a pod
// only when the kernel has it below that pod's cgroup, next to the agent's own,
// and those of a container only when the pod's status names that container.
package k8s
