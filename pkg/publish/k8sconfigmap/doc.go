// Package k8sconfigmap is the BundlePublisher k8s_configmap: it writes the trust
// bundle to a key of a ConfigMap, in one cluster or several, by server-side
// apply.
//
// Keys of the configuration, formats and the name of the field manager are
// SPIRE's, so that a ConfigMap goes on to be kept when a server takes over from
// SPIRE's.
//
// Read [Config] first. The invariant: of the ConfigMap nothing but that key is
// touched.
package k8sconfigmap
