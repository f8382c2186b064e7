// Package publish keeps copies of the trust domain's bundle where others read
// them: in a ConfigMap, in the configuration of a webhook.
//
// Where and in which form is for the rooms below (k8sconfigmap, k8sbundle); this
// one decides when: at the start, at once after each change of the bundle, and
// again after a failure. Changes that come while a copy is being written are
// written together.
//
// Read [Publisher] first. The invariant: what is written is the bundle as the
// store has it at that moment, so that of several servers none brings back an
// old one for good; and nobody waits for a copy.
package publish
