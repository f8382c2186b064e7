package etcd_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/etcd"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// clusters are what is measured: one member that does not wait for its disk,
// one that does, and three that do, in processes of their own.
func clusters(b *testing.B, run func(*testing.B, etcd.Config)) {
	b.Run("memory", func(b *testing.B) { run(b, fresh(b)) })
	b.Run("disk", func(b *testing.B) {
		run(b, etcd.Config{Endpoints: []string{etcdtest.New(b, etcdtest.Sync())}, History: -1})
	})
	b.Run("three", func(b *testing.B) {
		run(b, etcd.Config{Endpoints: etcdtest.NewCluster(b, 3, etcdtest.Sync()).Endpoints(), History: -1})
	})
}

// spread runs b.N calls of do, each with a number of its own, from callers at
// once.
func spread(b *testing.B, callers int, do func(n int64) error) {
	b.ResetTimer()
	var next atomic.Int64
	var g errgroup.Group
	for range callers {
		g.Go(func() error {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if err := do(n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
}

// BenchmarkUpdate creates an entry as the registry does: two reads, three keys.
func BenchmarkUpdate(b *testing.B) {
	clusters(b, func(b *testing.B, cfg etcd.Config) {
		s := open(b, cfg)
		for _, callers := range []int{1, 8} {
			b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
				spread(b, callers, func(n int64) error {
					_, err := s.Update(b.Context(), func(tx store.RWTx) error { return create(tx, callers, n) })
					return err
				})
			})
		}
	})
}

var record [260]byte

func create(tx store.RWTx, table int, n int64) error {
	id := fmt.Sprintf("e/%d/%08d", table, n)
	_, _ = tx.Get(id) // It is not there.
	_, _ = tx.Get("u" + id)
	tx.Put(id, record[:])
	tx.Put("u"+id, []byte(id))
	tx.Put("x"+id, nil)
	return nil
}

// BenchmarkContended has callers count up one key.
func BenchmarkContended(b *testing.B) {
	clusters(b, func(b *testing.B, cfg etcd.Config) {
		s := open(b, cfg)
		spread(b, 8, func(int64) error {
			_, err := s.Update(b.Context(), func(tx store.RWTx) error {
				_, err := number(tx, shared)
				tx.Put(shared, []byte("1"))
				return err
			})
			return err
		})
	})
}

// BenchmarkWatch measures from the call of an Update to the moment the last of
// the watchers of another process has the batch.
func BenchmarkWatch(b *testing.B) {
	clusters(b, func(b *testing.B, cfg etcd.Config) {
		for _, watchers := range []int{1, 100} {
			b.Run(fmt.Sprintf("watchers=%d", watchers), func(b *testing.B) {
				s, there := open(b, cfg), open(b, cfg)
				after, err := s.Head(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(b.Context())
				var seen, ended sync.WaitGroup
				for range watchers {
					ended.Go(func() {
						for _, err := range there.Watch(ctx, "e/", after) {
							if err != nil {
								return
							}
							seen.Done()
						}
					})
				}
				for b.Loop() {
					seen.Add(watchers)
					if _, err := s.Update(ctx, func(tx store.RWTx) error { tx.Put("e/key", record[:]); return nil }); err != nil {
						b.Fatal(err)
					}
					seen.Wait()
				}
				cancel()
				ended.Wait()
			})
		}
	})
}

// BenchmarkHead is what every read of an admin costs before it is answered.
func BenchmarkHead(b *testing.B) {
	clusters(b, func(b *testing.B, cfg etcd.Config) {
		s := open(b, cfg)
		for b.Loop() {
			if _, err := s.Head(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkScan is a server's start: everything is read.
func BenchmarkScan(b *testing.B) {
	const keys = 50_000
	s := open(b, fresh(b))
	var g errgroup.Group
	g.SetLimit(16)
	for first := 0; first < keys; first += 100 {
		g.Go(func() error {
			_, err := s.Update(b.Context(), func(tx store.RWTx) error {
				for i := range 100 {
					tx.Put(fmt.Sprintf("e/%08d", first+i), record[:])
				}
				return nil
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		n := 0
		if err := s.View(b.Context(), func(tx store.Tx) error {
			for _, err := range tx.Scan("e/", "") {
				if err != nil {
					return err
				}
				n++
			}
			return nil
		}); err != nil || n != keys {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(keys/b.Elapsed().Seconds()*float64(b.N), "keys/s")
}
