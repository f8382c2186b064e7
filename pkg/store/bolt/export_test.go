package bolt

import (
	"errors"

	"go.etcd.io/bbolt"

	"github.com/credence-id/credence/pkg/store"
)

// Compact forgets the kept history.
func Compact(s *Store) {
	head, _ := s.ring.Head()
	s.ring.Reset(head)
}

// WriteUnsynced makes a commit visible to readers of the file as it is while
// its last sync is under way, and returns what is called when that is done.
func WriteUnsynced(s *Store, key string) (publish func(), err error) {
	var b store.Batch
	err = s.db.Update(func(tx *bbolt.Tx) error {
		kv := tx.Bucket(bucketKV)
		b.Revision = store.Revision(kv.Sequence()) + 1
		b.Events = []store.Event{{Key: key, Value: []byte{}}}
		return errors.Join(kv.Put([]byte(key), make([]byte, stampSize)), kv.SetSequence(uint64(b.Revision)))
	})
	return func() { s.ring.Publish(b) }, err
}

// SetFormat changes the format version in a file that is not open.
func SetFormat(path, version string) error {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyFormat, []byte(version)) })
	return errors.Join(err, db.Close())
}

// Queued is how many Updates wait for the turn.
func Queued(s *Store) int {
	s.turns.mu.Lock()
	defer s.turns.mu.Unlock()
	return len(s.turns.queue)
}
