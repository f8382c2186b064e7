// Package kube has the stories of Credence on Kubernetes: they install it on a
// real cluster with the commands that an operator uses, and look at what
// workloads get.
//
// `make test-kube` runs them. The cluster is the one that KUBECONFIG names, and
// IMAGE_LOAD is a command that takes the path of an image archive and loads it
// into every node; without them each story is skipped and says so. KUBE_DISRUPT=1 is
// for clusters that may be broken on purpose, by the commands in KUBELET_RESTART,
// APISERVER_STOP and APISERVER_START.
//
// Read harness_test.go first. The invariant: the stories touch the namespace
// credence, namespaces named credence-test-…, what deploy/kubernetes installs,
// and nothing else; on a cluster without storage classes they make one directory
// on the node and a volume of it.
package kube
