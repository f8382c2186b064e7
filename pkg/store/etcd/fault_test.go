package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/etcd"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// in is a configuration for a store of its own in a cluster.
func in(endpoints []string) etcd.Config {
	return etcd.Config{
		Endpoints: endpoints, Prefix: fmt.Sprintf("/%d/", prefixes.Add(1)), History: -1,
		RequestTimeout: 3 * time.Second, DialTimeout: time.Minute,
	}
}

// counters are clients that each count up a key of their own, and all of them a
// shared one, and know what was acknowledged.
type counters struct {
	store   store.Store
	clients int
	acked   []int // by client
	unknown []int
	failed  []int
}

const shared = "n/shared"

func newCounters(s store.Store, clients int) *counters {
	return &counters{s, clients, make([]int, clients), make([]int, clients), make([]int, clients)}
}

// run counts until ctx ends.
func (c *counters) run(ctx context.Context) error {
	var g errgroup.Group
	for i := range c.clients {
		g.Go(func() error {
			for ctx.Err() == nil {
				_, err := c.store.Update(context.WithoutCancel(ctx), func(tx store.RWTx) error {
					for _, key := range []string{shared, fmt.Sprintf("n/%d", i)} {
						n, err := number(tx, key)
						if err != nil {
							return err
						}
						tx.Put(key, []byte(strconv.Itoa(n+1)))
					}
					// As the registry does: something new, something old.
					n, err := number(tx, fmt.Sprintf("n/%d", i))
					tx.Put(fmt.Sprintf("log/%d/%d", i, n), nil)
					tx.Delete(fmt.Sprintf("log/%d/%d", i, n-5))
					return err
				})
				switch {
				case err == nil:
					c.acked[i]++
				case !errors.Is(err, store.ErrUnavailable):
					return fmt.Errorf("client %d: %w", i, err)
				case strings.Contains(err.Error(), "outcome is unknown"):
					c.unknown[i]++
				default:
					c.failed[i]++
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func number(tx store.Tx, key string) (int, error) {
	kv, err := tx.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(kv.Value))
}

// check compares the store with what was acknowledged: each Update that was is
// there once, none twice, and no other but those of unknown outcome.
func (c *counters) check(t *testing.T) {
	t.Helper()
	least, most, failed := 0, 0, 0
	err := c.store.View(t.Context(), func(tx store.Tx) error {
		for i := range c.clients {
			n, err := number(tx, fmt.Sprintf("n/%d", i))
			if err != nil {
				return err
			}
			if n < c.acked[i] || n > c.acked[i]+c.unknown[i] {
				t.Errorf("client %d has counted to %d; %d were acknowledged, of %d the outcome was not known", i, n, c.acked[i], c.unknown[i])
			}
			least, most, failed = least+c.acked[i], most+c.acked[i]+c.unknown[i], failed+c.failed[i]
		}
		n, err := number(tx, shared)
		if n < least || n > most {
			t.Errorf("together they have counted to %d, not %d to %d", n, least, most)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d acknowledged, %d unknown, %d failed", least, most-least, failed)
}

// TestLostAnswers breaks the connections under commits: the store finds out
// what became of each, and nothing is done twice.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	link := etcdtest.NewLink(t, etcdtest.Start(t))
	cfg := fresh(t)
	cfg.Endpoints = link.Endpoints()
	s := open(t, cfg)
	c := newCounters(s, 4)
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return c.run(ctx) })
	seen := 0
	for b, err := range s.Watch(t.Context(), "n/", 0) {
		if err != nil || len(b.Events) != 2 {
			t.Fatalf("batch %+v, %v", b, err)
		}
		if seen++; seen%10 == 5 {
			link.Drop()
		}
		if seen == 200 {
			break
		}
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	c.check(t)
}

// TestClusterFaults has clients count while members of a cluster of three fail.
// They go on, or say that they cannot, and nothing acknowledged is lost.
func TestClusterFaults(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.NewCluster(t, 3)
	// What follows needs a majority again: the next one that fails is another.
	for _, c := range []struct {
		name       string
		fail, mend func(leader int)
	}{
		{"leader is killed", cluster.Kill, cluster.Restart},
		{"leader is paused", cluster.Pause, cluster.Continue},
		{"leader is cut off from the others", cluster.Isolate, cluster.Rejoin},
		{"majority is killed", func(leader int) {
			cluster.Kill(leader)
			cluster.Kill((leader + 1) % 3)
		}, func(leader int) {
			cluster.Restart(leader)
			cluster.Restart((leader + 1) % 3)
		}},
	} {
		s := open(t, in(cluster.Endpoints()))
		counting := newCounters(s, 4)
		ctx, cancel := context.WithCancel(t.Context())
		var g errgroup.Group
		g.Go(func() error { return counting.run(ctx) })
		after := func(what string, n int) {
			begin := time.Now()
			from, err := s.Head(t.Context())
			for errors.Is(err, store.ErrUnavailable) {
				from, err = s.Head(t.Context())
			}
			seen := 0
			for b, err := range s.Watch(t.Context(), "n/", from) {
				if err != nil || len(b.Events) != 2 {
					t.Fatalf("%s, %s: batch %+v, %v", c.name, what, b, err)
				}
				if seen++; seen == n {
					break
				}
			}
			t.Logf("%s: %s: %d updates seen after %v", c.name, what, n, time.Since(begin).Round(time.Millisecond))
		}
		after("before", 20)
		leader := cluster.Leader()
		c.fail(leader)
		if c.name != "majority is killed" {
			after("meanwhile", 20)
		} else if _, err := s.Head(t.Context()); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Head without a majority: %v", err)
		} else {
			t.Log(err)
		}
		c.mend(leader)
		after("afterwards", 20)
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		counting.check(t)
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}
