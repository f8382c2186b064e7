// Package k8spsat is the node attestor k8s_psat: an agent in a pod shows the
// projected service-account token that Kubernetes has given to that pod.
//
// Messages, selectors and agent IDs are SPIRE's. The token is verified by the
// cluster's TokenReview API, or with the keys of the cluster's issuer; after
// both, the pod, its node and its service account are looked up, and have to be
// the ones that the token was made for. The package speaks to a cluster through
// [Cluster] alone: the agent, which links it too, has no Kubernetes client.
//
// Read [Verifier] first. The invariant (S16): a token lets in the one pod it is
// bound to, while that is there, at the cluster and for the audience that it was
// made for. What a token says of itself is used to refuse it, never to believe
// it.
package k8spsat
