package bolt_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// loader makes entries shaped like the registry's: a record under an ID that
// grows with time, a uniqueness key that is a hash, and an expiry.
type loader struct {
	store *bolt.Store
	n     atomic.Uint64
}

const entriesPerUpdate = 25 // Two reads and three keys each: 125 of 126 operations.

// batch creates n entries, split into Updates that run side by side and so
// share one commit.
func (l *loader) batch(ctx context.Context, n int) error {
	var g errgroup.Group
	for ; n > 0; n -= entriesPerUpdate {
		part := min(n, entriesPerUpdate)
		first := l.n.Add(uint64(part)) - uint64(part)
		g.Go(func() error {
			_, err := l.store.Update(ctx, func(tx store.RWTx) error {
				for i := range part {
					if err := create(tx, first+uint64(i)); err != nil {
						return err
					}
				}
				return nil
			})
			return err
		})
	}
	return g.Wait()
}

var record [260]byte

func create(tx store.RWTx, n uint64) error {
	var num [8]byte
	binary.BigEndian.PutUint64(num[:], n)
	sum := sha256.Sum256(num[:])
	id := string(num[:]) + string(sum[:8]) // Like a UUIDv7: time first, then chance.
	unique := "u/" + string(sum[8:24])
	if _, err := tx.Get(unique); err == nil {
		return fmt.Errorf("entry %d is there", n)
	}
	if _, err := tx.Get("e/" + id); err == nil {
		return fmt.Errorf("entry %d is there", n)
	}
	tx.Put("e/"+id, record[:])
	tx.Put(unique, []byte(id))
	tx.Put("x/"+string(num[:])+"e"+id, nil)
	return nil
}

// grown opens a store that holds n entries.
func grown(tb testing.TB, n int) *loader {
	l := &loader{store: open(tb, bolt.Config{Path: tempPath(tb)})}
	for left := n; left > 0; left -= 5000 {
		if err := l.batch(tb.Context(), 5000); err != nil {
			tb.Fatal(err)
		}
	}
	return l
}

// BenchmarkUpdate50 creates entries in batches of 50, every batch on disk
// before the next one of the same caller.
func BenchmarkUpdate50(b *testing.B) {
	for _, size := range []int{0, 100_000} {
		for _, callers := range []int{1, 8} {
			b.Run(fmt.Sprintf("entries=%d/callers=%d", size, callers), func(b *testing.B) {
				l := grown(b, size)
				var left atomic.Int64
				b.ResetTimer()
				left.Store(int64(b.N))
				var g errgroup.Group
				for range callers {
					g.Go(func() error {
						for left.Add(-1) >= 0 {
							if err := l.batch(b.Context(), 50); err != nil {
								return err
							}
						}
						return nil
					})
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(b.N)*50/b.Elapsed().Seconds(), "entries/s")
			})
		}
	}
}

// BenchmarkWatch measures from the call of an Update to the moment the last of
// its watchers has the batch.
func BenchmarkWatch(b *testing.B) {
	for _, watchers := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("watchers=%d", watchers), func(b *testing.B) {
			s := open(b, bolt.Config{Path: tempPath(b)})
			ctx, cancel := context.WithCancel(b.Context())
			var seen sync.WaitGroup
			var ended sync.WaitGroup
			for range watchers {
				ended.Go(func() {
					for _, err := range s.Watch(ctx, "e/", 0) {
						if err != nil {
							return
						}
						seen.Done()
					}
				})
			}
			for b.Loop() {
				seen.Add(watchers)
				if _, err := s.Update(ctx, func(tx store.RWTx) error {
					tx.Put("e/key", record[:])
					tx.Put("other/key", record[:])
					return nil
				}); err != nil {
					b.Fatal(err)
				}
				seen.Wait()
			}
			cancel()
			ended.Wait()
		})
	}
}

func BenchmarkView(b *testing.B) {
	l := grown(b, 100_000)
	var num [8]byte
	sum := sha256.Sum256(num[:])
	key := "e/" + string(num[:]) + string(sum[:8])
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if err := l.store.View(b.Context(), func(tx store.Tx) error {
				_, err := tx.Get(key)
				return err
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("scan=100000", func(b *testing.B) {
		for b.Loop() {
			n := 0
			if err := l.store.View(b.Context(), func(tx store.Tx) error {
				for _, err := range tx.Scan("e/", "") {
					if err != nil {
						return err
					}
					n++
				}
				return nil
			}); err != nil || n < 100_000 {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("backup", func(b *testing.B) {
		for b.Loop() {
			if _, err := l.store.Backup(b.Context(), io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOpen is a server's start: making the store, opening an empty one,
// opening a grown one.
func BenchmarkOpen(b *testing.B) {
	reopen := func(b *testing.B, path string) {
		for b.Loop() {
			s, err := bolt.Open(bolt.Config{Path: path})
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	b.Run("new", func(b *testing.B) {
		path := tempPath(b)
		for i := 0; b.Loop(); i++ {
			start := time.Now()
			s, err := bolt.Open(bolt.Config{Path: path})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(start).Microseconds()), "last-µs")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			if err := os.Remove(path); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, size := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("entries=%d", size), func(b *testing.B) {
			path := tempPath(b)
			l := &loader{store: open(b, bolt.Config{Path: path})}
			for range size / 5000 {
				if err := l.batch(b.Context(), 5000); err != nil {
					b.Fatal(err)
				}
			}
			if err := l.store.Close(); err != nil {
				b.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil {
				b.Fatal(err)
			}
			reopen(b, path)
			b.ReportMetric(float64(info.Size())/(1<<20), "MiB")
		})
	}
}
