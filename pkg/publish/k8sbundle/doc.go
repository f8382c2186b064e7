// Package k8sbundle is the Notifier k8sbundle: it writes the X.509 authorities,
// PEM, to a ConfigMap that is there, and to the caBundle of webhooks and
// APIServices that have a label, in one cluster or several.
//
// Keys of the configuration and their defaults are SPIRE's. Objects that get the
// label later, or whose caBundle somebody changes, are seen by a watch.
//
// Read [Config] first. The invariant: an object without the label is never
// touched, and of the others nothing but the caBundle.
package k8sbundle
