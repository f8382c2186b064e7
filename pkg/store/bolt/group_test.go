package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// gathered sums up a registry's metrics: counters and gauges by value,
// histograms as name_count and name_sum.
func gathered(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range all {
		m := f.GetMetric()[0]
		if h := m.GetHistogram(); h != nil {
			out[f.GetName()+"_count"], out[f.GetName()+"_sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
			continue
		}
		out[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return out
}

func putOne(ctx context.Context, s store.Store, key string) error {
	_, err := s.Update(ctx, func(tx store.RWTx) error {
		tx.Put(key, []byte("x"))
		return nil
	})
	return err
}

// TestGroup holds one Update up while others queue: they share one commit.
func TestGroup(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	s := open(t, bolt.Config{Path: tempPath(t), Registerer: reg})
	started, leave := make(chan struct{}), make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		_, err := s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Put("first", nil)
			close(started)
			<-leave
			return nil
		})
		return err
	})
	<-started
	const others = 20
	for i := range others {
		g.Go(func() error { return putOne(t.Context(), s, fmt.Sprint(i)) })
	}
	waitFor(t, func() bool { return bolt.Queued(s) == others })

	// One of the queue changes its mind: it leaves at once and never runs.
	ctx, cancel := context.WithCancel(t.Context())
	var quitter errgroup.Group
	quitter.Go(func() error {
		_, err := s.Update(ctx, func(store.RWTx) error { return errors.New("ran") })
		return err
	})
	waitFor(t, func() bool { return bolt.Queued(s) == others+1 })
	cancel()
	if err := quitter.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Update whose context ended in the queue: %v", err)
	}
	close(leave)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := gathered(t, reg)
	if got["credence_store_commit_updates_count"] != 1 || got["credence_store_commit_updates_sum"] != others+1 {
		t.Errorf("%v commits of %v updates, want 1 of %d",
			got["credence_store_commit_updates_count"], got["credence_store_commit_updates_sum"], others+1)
	}
	if got["credence_store_history_batches"] != others+1 || got["credence_store_revision"] != others+1 ||
		got["credence_store_size_bytes"] < 8192 || got["credence_store_commit_duration_seconds_sum"] <= 0 {
		t.Errorf("metrics: %v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left := gathered(t, reg); len(left) != 0 {
		t.Errorf("metrics after Close: %v", left)
	}
}

func waitFor(t *testing.T, what func() bool) {
	t.Helper()
	for start := time.Now(); !what(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("waited too long")
		}
	}
}

// TestDurableReads shows a reader a commit that is in the file and not yet
// synced: it must wait, not see it, nor see the past.
func TestDurableReads(t *testing.T) {
	t.Parallel()
	s := open(t, bolt.Config{Path: tempPath(t)})
	if err := putOne(t.Context(), s, "a"); err != nil {
		t.Fatal(err)
	}
	publish, err := bolt.WriteUnsynced(s, "b")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = s.View(ctx, func(tx store.Tx) error { return fmt.Errorf("saw revision %d", tx.Revision()) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("View of what is not durable: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.View(t.Context(), func(tx store.Tx) error {
			if tx.Revision() != 2 {
				return fmt.Errorf("View is at %d, want 2", tx.Revision())
			}
			_, err := tx.Get("b")
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	publish()
	wg.Wait()
}

// TestLongView keeps a reader open while the file grows many times over.
func TestLongView(t *testing.T) {
	t.Parallel()
	s := open(t, bolt.Config{Path: tempPath(t)})
	if err := putOne(t.Context(), s, "a"); err != nil {
		t.Fatal(err)
	}
	err := s.View(t.Context(), func(tx store.Tx) error {
		big := make([]byte, store.MaxBytes/2)
		for i := range 50 { // 25 MiB.
			if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
				tx.Put(fmt.Sprint(i), big)
				return nil
			}); err != nil {
				return err
			}
		}
		if _, err := tx.Get("0"); !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("the snapshot moved: %w", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRing overruns a small history, by number and by bytes.
func TestRing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		batches, bytes, value int
	}{
		"batches": {batches: 10, value: 1},
		"bytes":   {bytes: 4 * store.MaxBytes, value: store.MaxBytes / 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := prometheus.NewRegistry()
			s := open(t, bolt.Config{Path: tempPath(t), RingBatches: c.batches, RingBytes: c.bytes, Registerer: reg})
			next, stop := iter.Pull2(s.Watch(t.Context(), "", 0))
			defer stop()
			if err := putOne(t.Context(), s, "first"); err != nil {
				t.Fatal(err)
			}
			if b, err, _ := next(); err != nil || b.Revision != 1 {
				t.Fatalf("first batch is %d, %v", b.Revision, err)
			}
			for i := range 50 {
				if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
					tx.Put(fmt.Sprint(i%7), make([]byte, c.value))
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			got := gathered(t, reg)
			if n := got["credence_store_history_batches"]; n > 10 || n < 3 {
				t.Errorf("the history has %v batches", n)
			}
			if n := got["credence_store_history_bytes"]; n > 4*store.MaxBytes {
				t.Errorf("the history has %v bytes", n)
			}
			// The watcher that stood still is told; the newest are there.
			if _, err, _ := next(); !errors.Is(err, store.ErrCompacted) {
				t.Errorf("a watcher that fell behind got %v", err)
			}
			for b, err := range s.Watch(t.Context(), "", 49) {
				if err != nil || b.Revision != 50 {
					t.Errorf("watching near the head gave %d, %v", b.Revision, err)
				}
				break
			}
		})
	}
}
