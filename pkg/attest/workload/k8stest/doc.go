// Package k8stest has stand-ins for what the workload attestor k8s asks and we do
// not own: an API server ([API]) and a kubelet ([Kubelet]). They speak the real
// protocol over real TLS on loopback (lists, watches as streams of JSON,
// bookmarks, 410, refusals), and break in the ways the real ones do.
//
// They know pods and namespaces and nothing else, and they are not a mock of our
// own code: what they send is made of Kubernetes' documented objects. Tests
// against real programs are elsewhere.
//
// Read [API] first. The invariant: a change is in the list, and in each watch in
// the order of revisions, before the method that makes it returns or the watch
// is cut.
package k8stest
