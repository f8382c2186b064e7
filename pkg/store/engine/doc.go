// Package engine has what the engines of the store do alike: it buffers the
// writes of an Update and counts its limits, and keeps the newest batches for
// watchers.
//
// It stores nothing, and knows no snapshot: packages bolt and etcd do, which are
// its only users. Read [Buffer] first. The invariant: both engines refuse the same
// Updates, and give watchers the same batches.
package engine
