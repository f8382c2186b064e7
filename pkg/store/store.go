package store

import (
	"context"
	"errors"
	"io"
	"iter"
)

// Revision is a point in the history of one store. Zero is the empty store,
// before anything was committed. Revisions of two stores (see [Info.ID]) cannot
// be compared.
type Revision uint64

// Limits of one Update. They are what every engine can do (etcd is the
// narrower one) and every engine enforces them.
const (
	// MaxOps is how many operations the function of one Update may make: each
	// distinct key read counts one, each distinct key put one, each distinct
	// key deleted two, each Scan two, however many keys it yields. A Get of a
	// key that the function itself wrote is free. (128 is etcd's limit; the
	// engine's head and the lock's guard take two of it.)
	MaxOps = 126
	// MaxBytes bounds the keys and values written by one Update; of a key
	// written more than once the last counts.
	MaxBytes = 1 << 20
	// MaxKey bounds a key, in bytes. The empty key does not exist.
	MaxKey = 1 << 10
)

// Sentinel errors of every engine, tested with errors.Is.
var (
	// ErrNotFound is returned by Tx.Get for a key that is not there.
	ErrNotFound = errors.New("store: key not found")
	// ErrTooLarge is returned by Update when the function exceeded MaxOps,
	// MaxBytes or MaxKey, or wrote the empty key, whatever the function itself
	// returned. Nothing was written; split the work.
	ErrTooLarge = errors.New("store: update exceeds the limits of one transaction")
	// ErrCompacted is yielded by Watch when the history after the given
	// revision is gone, or never was: a revision greater than Head belongs to
	// another store, or to this one before it was restored. Read everything in
	// a View and watch from its revision.
	ErrCompacted = errors.New("store: history is compacted")
	// ErrUnavailable is returned when the engine cannot be reached or cannot
	// write now. An Update that ends with it may or may not have been
	// committed, unless the error says otherwise.
	ErrUnavailable = errors.New("store: unavailable")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("store: closed")
	// ErrFormat is returned when opening a store written by a newer version
	// of the program.
	ErrFormat = errors.New("store: format is newer than this program understands")
	// ErrLocked is returned when opening a store that another process holds.
	ErrLocked = errors.New("store: in use by another process")
	// ErrLockLost is returned by an Update made under a [Lock] whose holder
	// is not the holder any more.
	ErrLockLost = errors.New("store: lock lost")
)

// Store is an ordered map from string keys to byte values with one history.
//
// All methods may be called concurrently. A method blocks until done, its
// context ends, or the engine gives up with ErrUnavailable.
type Store interface {
	// View runs fn over one consistent snapshot, which is at least as new as
	// every Update that returned before View was called. The Tx, and byte
	// slices read from it, are not used after fn returns.
	View(ctx context.Context, fn func(Tx) error) error

	// Update runs fn and commits what it wrote, durably, before it returns
	// the revision of the commit. Updates are serializable: the outcome is as
	// if they ran one after another, reads and scanned ranges included. fn
	// may run more than once and must have no effect but through its RWTx. An
	// error of fn is returned as it is and nothing is written. An Update
	// that writes nothing returns the revision it read at and makes no batch.
	// Updates of neighbours that share a disk write fail or succeed each on
	// its own, and a panic of fn reaches only its own caller. A ctx that ends
	// before fn has run leaves no trace; once the commit has begun, Update
	// waits for its outcome. fn must not call Update of the same store.
	Update(ctx context.Context, fn func(RWTx) error) (Revision, error)

	// Watch yields every committed Update after the given revision that wrote
	// keys with the prefix, in order, without gaps, as one Batch each,
	// containing only events of that prefix. It ends when the consumer stops
	// ranging, or yields one error last: ErrCompacted, ctx.Err(), ErrClosed or
	// ErrUnavailable; the consumer may watch again from its last revision.
	// After Head it waits. A Batch is seen by a watcher only after it is
	// durable. A consumer that is
	// slow never blocks writers; one that falls behind the kept history gets
	// ErrCompacted.
	Watch(ctx context.Context, prefix string, after Revision) iter.Seq2[Batch, error]

	// Head is the newest committed revision. It is linearizable: it is not
	// older than any Update that returned, on any server, before Head was
	// called.
	Head(ctx context.Context) (Revision, error)

	// Check says whether the store can be read and written now: nil, or
	// ErrUnavailable with what is wrong and what to do. It is asked by health
	// checks, every few seconds; an engine whose last commit failed tries
	// whether one would succeed, without a batch.
	Check(ctx context.Context) error

	// Info describes this store; it does not change while it is open.
	Info() Info

	// Backup writes a consistent copy, online, of which the same engine can
	// make a store, and returns the revision it holds. Writers go on
	// meanwhile. What is made of it is another store, with revisions of its
	// own.
	Backup(ctx context.Context, w io.Writer) (Revision, error)

	// Lock waits until this process is the holder of the named lock, for
	// work that is done once per cluster. It returns ctx.Err() when ctx ends
	// first.
	Lock(ctx context.Context, name string) (Lock, error)

	// Close waits for running transactions, ends all watches with ErrClosed
	// and releases the engine. Later calls return ErrClosed.
	Close() error
}

// Lock is held until Unlock is called or the holder is lost.
type Lock interface {
	// Update is Store.Update that commits only while the lock is held, else
	// ErrLockLost.
	Update(ctx context.Context, fn func(RWTx) error) (Revision, error)
	// Lost is closed when the lock is known to be held no more.
	Lost() <-chan struct{}
	// Unlock gives the lock up. It may be called more than once. A holder who
	// has lost the lock calls it too, before Lock: until then those of the same
	// process who ask for the lock wait.
	Unlock()
}

// Info identifies a store.
type Info struct {
	// ID is random, made with the store and renewed by restore and copy: 16
	// bytes as lower-case hex.
	ID string
	// Format is the version of the layout above the engine.
	Format int
	// Engine is the engine's configured name, such as "bolt".
	Engine string
	// Remote says that the store is kept by other processes, from which this
	// one can be cut off while it runs.
	Remote bool
}

// Tx reads one snapshot. It is used by one goroutine.
type Tx interface {
	// Get returns the value of key, or ErrNotFound. The value must not be
	// changed, nor kept after the transaction's function returns.
	Get(key string) (KV, error)
	// Scan yields the keys that begin with prefix and are greater than after
	// (empty: from the first), in byte order. Writes of the same transaction
	// are seen, also those made while scanning: each step yields the least key
	// greater than the one before. Values are bound by the rule of Get.
	Scan(prefix, after string) iter.Seq2[KV, error]
	// Revision is the snapshot's.
	Revision() Revision
}

// RWTx reads and writes. Errors of exceeding limits are returned by the
// Update, not by Put and Delete, so that rules read without noise.
type RWTx interface {
	Tx
	// Put sets key to value, which is copied; nil is the empty value.
	Put(key string, value []byte)
	// Delete removes key; a key that is not there is left alone, and is not
	// an event.
	Delete(key string)
}

// KV is a key, its value, and the revision of the Update that wrote it. In an
// RWTx a value written by the same transaction has ModRevision 0.
type KV struct {
	Key         string
	Value       []byte
	ModRevision Revision
}

// Batch is what one Update wrote.
type Batch struct {
	// Revision is the Update's.
	Revision Revision
	// Events are in key order, at most one for a key. They are shared by all
	// watchers and must not be changed.
	Events []Event
}

// Event is one key's change. Value is nil exactly when the key was deleted.
type Event struct {
	Key   string
	Value []byte
}

// Deleted says whether the event removed its key.
func (e Event) Deleted() bool { return e.Value == nil }
