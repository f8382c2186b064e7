package dump

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

// Marker is the key of a store that is being filled. Nothing else has it.
const Marker = "\x00restoring"

const (
	// chunkKeys is how many keys one Update writes; it reads the marker too.
	chunkKeys = store.MaxOps - 1
	// chunks is how many Updates are under way at a time.
	chunks = 8
)

var (
	// ErrNotEmpty is returned by Read for a store that holds something.
	ErrNotEmpty = errors.New("store is not empty: choose another, nothing was changed")
	// ErrIncomplete is returned for a store that Read has not finished to fill.
	ErrIncomplete = errors.New("store is incomplete: a restore or copy into it was broken off; run it again, or remove the store")
	// errTaken is returned by Read when another one fills the same store.
	errTaken = errors.New("another restore has begun on the same store")
)

// Progress is told how far a call is, from time to time and at the end. Only
// Keys and Bytes change.
type Progress func(Summary)

// CheckWhole returns ErrIncomplete for a store that Read has begun to fill and
// not finished. Whoever opens a store to use it asks first.
func CheckWhole(ctx context.Context, s store.Store) error {
	return s.View(ctx, whole)
}

func whole(tx store.Tx) error {
	switch _, err := tx.Get(Marker); {
	case err == nil:
		return ErrIncomplete
	case errors.Is(err, store.ErrNotFound):
		return nil
	default:
		return err
	}
}

// Write writes the content of s, as it is at one revision, while others go on
// using it. It returns ErrIncomplete, or the error of s or w. progress may be
// nil.
func Write(ctx context.Context, s store.Store, w io.Writer, progress Progress) (sum Summary, err error) {
	err = s.View(ctx, func(tx store.Tx) error {
		if err := whole(tx); err != nil {
			return err
		}
		info := s.Info()
		e, err := newEncoder(w, Summary{
			StoreID: info.ID, Engine: info.Engine, Format: info.Format, Revision: tx.Revision(), Time: time.Now().UTC(),
		})
		if err != nil {
			return fmt.Errorf("writing dump: %w", err)
		}
		for kv, err := range tx.Scan("", "") {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			if err := e.add(kv); err != nil {
				return fmt.Errorf("writing dump: %w", err)
			}
			progress.tell(e.sum, e.sum.Keys%1000 == 0)
		}
		if err := e.finish(); err != nil {
			return fmt.Errorf("writing dump: %w", err)
		}
		sum = e.sum
		progress.tell(sum, true)
		return nil
	})
	return sum, err
}

func (p Progress) tell(sum Summary, now bool) {
	if p != nil && now {
		p(sum)
	}
}

// Verify reads a stream to its end and says what it holds. It returns
// ErrDamaged or ErrFormat, or the error of r.
func Verify(r io.Reader) (Summary, error) {
	return decode(r, func(string, []byte) error { return nil })
}

// Read fills s, which must be empty, with the content of a stream, reads it
// back and compares. Until that is done, also if the process dies, s has the
// Marker; a store that has it when Read begins is emptied first. It returns
// ErrNotEmpty, ErrDamaged, ErrFormat, or the error of r or s. progress may be
// nil.
func Read(ctx context.Context, r io.Reader, s store.Store, progress Progress) (Summary, error) {
	f, err := begin(ctx, s)
	if err != nil {
		return Summary{}, err
	}
	sum, err := f.fill(ctx, r, progress)
	if err != nil {
		return sum, err
	}
	return sum, f.finish(ctx, sum)
}

// Copy fills the store to, which must be empty, with what is in from at one
// revision. It is Write and Read with nothing in between. progress may be nil.
func Copy(ctx context.Context, from, to store.Store, progress Progress) (sum Summary, err error) {
	r, w := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		_, err := Write(ctx, from, w, nil)
		return errors.Join(err, w.CloseWithError(err))
	})
	sum, err = Read(ctx, r, to, progress)
	r.CloseWithError(err)
	if werr := g.Wait(); werr != nil && (err == nil || errors.Is(err, werr)) {
		return sum, werr
	}
	return sum, err
}

// filler is one Read.
type filler struct {
	store store.Store
	mine  string // the marker's value
	// content is of all keys and values, in order.
	content hash.Hash
}

// begin puts the marker into an empty store.
func begin(ctx context.Context, s store.Store) (*filler, error) {
	var nonce [16]byte
	rand.Read(nonce[:])
	f := &filler{store: s, mine: hex.EncodeToString(nonce[:]), content: sha256.New()}
	again := false
	_, err := s.Update(ctx, func(tx store.RWTx) error {
		err := whole(tx)
		if again = errors.Is(err, ErrIncomplete); err != nil && !again {
			return err
		}
		for _, err := range tx.Scan("", "") {
			if err == nil && !again {
				err = ErrNotEmpty
			}
			if err != nil {
				return err
			}
			break
		}
		tx.Put(Marker, []byte(f.mine))
		return nil
	})
	for err == nil && again {
		again, err = f.empty(ctx)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// held says whether the marker is still the one of this Read.
func (f *filler) held(tx store.Tx) error {
	switch kv, err := tx.Get(Marker); {
	case errors.Is(err, store.ErrNotFound), err == nil && string(kv.Value) != f.mine:
		return errTaken
	default:
		return err
	}
}

// empty deletes some of what an earlier Read has left; false when there is
// nothing more.
func (f *filler) empty(ctx context.Context) (more bool, err error) {
	_, err = f.store.Update(ctx, func(tx store.RWTx) error {
		more = false
		if err := f.held(tx); err != nil {
			return err
		}
		n := 0
		for kv, err := range tx.Scan("", "") {
			if err != nil {
				return err
			}
			if kv.Key == Marker {
				continue
			}
			tx.Delete(kv.Key)
			if n++; n == (store.MaxOps-3)/2 {
				more = true
				break
			}
		}
		return nil
	})
	return more, err
}

// fill writes the stream's content, several Updates at a time.
func (f *filler) fill(ctx context.Context, r io.Reader, progress Progress) (Summary, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(chunks)
	var mu sync.Mutex
	var done Summary // guarded by mu
	var chunk []store.KV
	size := 0
	send := func() {
		part := chunk
		chunk, size = nil, 0
		g.Go(func() error {
			if err := f.put(ctx, part); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, kv := range part {
				done.count(kv.Key, kv.Value)
			}
			progress.tell(done, true)
			return nil
		})
	}
	sum, err := decode(r, func(key string, value []byte) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if key == Marker {
			return fmt.Errorf("%w: it holds the key of an unfinished restore", ErrDamaged)
		}
		f.content.Write(appendKV(nil, key, value))
		n := len(key) + len(value)
		if len(chunk) == chunkKeys || size+n > store.MaxBytes {
			send()
		}
		chunk = append(chunk, store.KV{Key: key, Value: value})
		size += n
		return nil
	})
	if err == nil && len(chunk) > 0 {
		send()
	}
	return sum, errors.Join(err, g.Wait())
}

func (f *filler) put(ctx context.Context, part []store.KV) error {
	_, err := f.store.Update(ctx, func(tx store.RWTx) error {
		if err := f.held(tx); err != nil {
			return err
		}
		for _, kv := range part {
			tx.Put(kv.Key, kv.Value)
		}
		return nil
	})
	return err
}

// finish compares what is in the store with what was read, and removes the
// marker.
func (f *filler) finish(ctx context.Context, sum Summary) error {
	content := sha256.New()
	keys := 0
	err := f.store.View(ctx, func(tx store.Tx) error {
		for kv, err := range tx.Scan("", "") {
			if err != nil {
				return err
			}
			if kv.Key == Marker {
				continue
			}
			content.Write(appendKV(nil, kv.Key, kv.Value))
			keys++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if keys != sum.Keys || string(content.Sum(nil)) != string(f.content.Sum(nil)) {
		return fmt.Errorf("the store holds %d keys that are not the %d of the dump: it stays marked as incomplete; run it again", keys, sum.Keys)
	}
	_, err = f.store.Update(ctx, func(tx store.RWTx) error {
		if err := f.held(tx); err != nil {
			return err
		}
		tx.Delete(Marker)
		return nil
	})
	return err
}
