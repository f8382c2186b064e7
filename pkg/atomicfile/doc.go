// Package atomicfile replaces a small file whole: after a crash at any moment,
// power loss included, the path holds the old content or the new, never a mix
// and never neither.
//
// It is for keys, identities and cached state of a process that owns its
// directory; it takes no locks, so two writers of one path are last-one-wins.
//
// Read [Write] first. The invariant: when it returned without error, content
// and name are on stable storage.
package atomicfile
