// Package kubetest gives tests a Kubernetes API server: a fake of what this
// program asks of one and, where its programs are, a real one with its etcd.
//
// The environment variable KUBEBUILDER_ASSETS names a directory with the
// programs etcd and kube-apiserver; they are started once for the tests of a
// package, and take some seconds. There is no kubelet, no scheduler and no
// controller: pods are written by the test, on the node that it says, and never
// run.
//
// Read [Run] first. The invariant: a test sees the same from both, or the fake
// is wrong.
package kubetest
