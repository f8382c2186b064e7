// Command workload is what runs in the pods of the stories in test/kube: an
// ordinary client of the Workload API, and a few that are not ordinary.
//
// It writes one JSON object a line to its standard output, which the stories
// read by `kubectl logs`. Read main.go first. The invariant: it knows nothing of
// Credence; all it has is SPIFFE's client library and the kernel.
package main
