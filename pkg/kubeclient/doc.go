// Package kubeclient reaches the API servers of Kubernetes clusters, for the
// server: what the node attestor k8s_psat asks, and where bundles are written.
//
// It puts the clients of client-go behind a few calls, each bounded in time; it keeps no cache and decides nothing. The agent does not link it, and
// reads pods with a client of its own.
//
// Read [Client] first. The invariant: a Client connects to nothing before it is
// asked something, follows changes of its kubeconfig file, and none of its
// errors repeats a token.
package kubeclient
