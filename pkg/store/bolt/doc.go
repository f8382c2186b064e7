// Package bolt is the embedded store engine: one file, one process, written by
// go.etcd.io/bbolt. It keeps the contract of package store and adds to bbolt
// what that contract needs: a revision for every Update, group commit without
// a timer, a ring of recent batches to watch, and reads that never see what is
// not yet on disk.
//
// It is not a cache and not a codec: it moves bytes. A second process cannot
// open the same file; for several servers on one store see the etcd engine.
//
// Read [Store] first (store.go), then turns.go and group.go, where Updates of
// several callers become one disk write.
//
// Layout of the file: the bucket "kv" maps each key to the 8-byte big-endian
// revision of the Update that wrote it, followed by the value; the bucket's
// sequence is the store's revision. The bucket "meta" holds the format version
// and the store's ID.
//
// The invariant: what a View, a Watch or the return of an Update shows has
// been synced to disk; after a crash the file holds every Update that
// returned, and none in part.
package bolt
