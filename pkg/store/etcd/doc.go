// Package etcd is the store engine for several servers: the keys are in an etcd
// cluster (etcd 3.5 or newer), and every server that is given the same cluster
// and prefix has the same store. It keeps the contract of package store and
// adds to etcd what that contract needs: serializable Updates that have read
// ranges, a definite answer where a connection broke during a commit, one feed
// of batches for all watchers of a process, and locks with a fence.
//
// It is not a cache: it keeps no key. It does not run etcd, and it shares one
// with others: all it reads and writes is below its prefix. What it does to the
// whole of etcd is to compact the history, see [Config].
//
// Read [Store] first, then update.go, where an Update becomes one transaction
// of etcd, and resolve.go, which finds out what became of it.
//
// A Revision is etcd's: that of the transaction which wrote the key "head" last.
// It grows by more than one, as others write too; before the first Update it
// is 0. layout.go says which keys there are.
//
// The invariant: every transaction of an Update writes head and compares the
// record of the store. What writes that record therefore stops all that have
// been sent and not arrived.
package etcd
