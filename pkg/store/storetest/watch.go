package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

// journal is what Updates that returned have written, by revision.
type journal struct {
	mu      sync.Mutex
	batches map[store.Revision]map[string]string // "" for a deleted key
}

// write makes random Updates on keys of its own and journals them.
func (j *journal) write(ctx context.Context, s store.Store, client, updates int) error {
	rng := rand.New(rand.NewPCG(7, uint64(client)))
	there := make(map[string]bool)
	for n := range updates {
		wrote := make(map[string]string)
		for range 1 + rng.IntN(4) {
			key := fmt.Sprintf("%c/%d/%d", 'a'+rng.IntN(3), client, rng.IntN(5))
			switch {
			case there[key] && rng.IntN(3) == 0:
				wrote[key] = ""
			default:
				wrote[key] = fmt.Sprintf("%d.%d", client, n)
			}
		}
		for k, v := range wrote {
			there[k] = v != ""
		}
		rev, err := s.Update(ctx, func(tx store.RWTx) error {
			for k, v := range wrote {
				if v == "" {
					tx.Delete(k)
				} else {
					tx.Put(k, []byte(v))
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("client %d, update %d: %w", client, n, err)
		}
		j.mu.Lock()
		if j.batches[rev] != nil {
			j.mu.Unlock()
			return fmt.Errorf("revision %d was given twice", rev)
		}
		j.batches[rev] = wrote
		j.mu.Unlock()
	}
	return nil
}

// with returns the journal's batches that wrote keys with the prefix, cut down
// to those keys.
func (j *journal) with(prefix string) map[store.Revision]map[string]string {
	out := make(map[store.Revision]map[string]string)
	for rev, wrote := range j.batches {
		for k, v := range wrote {
			if !strings.HasPrefix(k, prefix) {
				continue
			}
			if out[rev] == nil {
				out[rev] = make(map[string]string)
			}
			out[rev][k] = v
		}
	}
	return out
}

const lastKey = "\xff/last"

// collect watches until the batch that writes lastKey, which every prefix in
// these tests is told of by being "" or by last being under it.
func collect(ctx context.Context, s store.Store, prefix string, pause func(int)) (map[store.Revision]map[string]string, error) {
	got := make(map[store.Revision]map[string]string)
	var at store.Revision
	n := 0
	for b, err := range s.Watch(ctx, prefix, 0) {
		if err != nil {
			return got, err
		}
		if b.Revision <= at {
			return got, fmt.Errorf("batch %d came after %d", b.Revision, at)
		}
		at = b.Revision
		wrote := make(map[string]string)
		for i, e := range b.Events {
			if i > 0 && b.Events[i-1].Key >= e.Key || !strings.HasPrefix(e.Key, prefix) {
				return got, fmt.Errorf("batch %d for prefix %q holds %q", at, prefix, e.Key)
			}
			wrote[e.Key] = string(e.Value)
		}
		if _, ok := wrote[prefix+lastKey]; ok {
			return got, nil
		}
		got[at] = wrote
		n++
		pause(n)
	}
	return got, errors.New("the watch ended by itself")
}

// testWatchOrder compares what watchers of different pace and prefix get with
// what the writers know they wrote.
func testWatchOrder(t *testing.T, e Engine) {
	stores := e.handles(t, 2)
	j := &journal{batches: make(map[store.Revision]map[string]string)}
	paces := map[string]func(int){
		"fast":   func(int) {},
		"slow":   func(int) { time.Sleep(200 * time.Microsecond) },
		"uneven": func(n int) { time.Sleep(time.Duration(n%50/49) * 10 * time.Millisecond) },
	}
	prefixes := []string{"", "a/", "b/3", "c/"}
	var watchers errgroup.Group
	got := make(map[string]map[store.Revision]map[string]string)
	var mu sync.Mutex
	i := 0
	for pace, pause := range paces {
		for _, prefix := range prefixes {
			s := stores[i%2]
			i++
			watchers.Go(func() error {
				seen, err := collect(soon(t), s, prefix, pause)
				if err != nil {
					return fmt.Errorf("%s watcher of %q: %w", pace, prefix, err)
				}
				mu.Lock()
				defer mu.Unlock()
				got[pace+prefix] = seen
				return nil
			})
		}
	}
	var writers errgroup.Group
	for client := range 8 {
		writers.Go(func() error { return j.write(soon(t), stores[client%2], client, 50) })
	}
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	update(t, stores[0], func(tx store.RWTx) {
		for _, prefix := range prefixes {
			tx.Put(prefix+lastKey, nil)
		}
	})
	if err := watchers.Wait(); err != nil {
		t.Fatal(err)
	}
	for pace := range paces {
		for _, prefix := range prefixes {
			if diff := cmp.Diff(j.with(prefix), got[pace+prefix]); diff != "" {
				t.Errorf("%s watcher of %q (-written +seen):\n%s", pace, prefix, diff)
			}
		}
	}
}

// testWatchResume watches again from every revision there was.
func testWatchResume(t *testing.T, e Engine) {
	s := e.fresh(t)
	revs := []store.Revision{0}
	states := []map[string]string{{}}
	for i := range 40 {
		state := maps.Clone(states[i])
		key := fmt.Sprintf("k/%d", i%7)
		if i%5 == 4 {
			key = fmt.Sprintf("k/%d", (i-1)%7)
			delete(state, key)
			revs = append(revs, update(t, s, func(tx store.RWTx) { tx.Delete(key) }))
		} else {
			state[key] = fmt.Sprint(i)
			revs = append(revs, put(t, s, key, state[key], "other", ""))
		}
		states = append(states, state)
	}
	last := len(revs) - 1
	for i, after := range revs {
		for until := i + 1; until <= last; until += 1 + last/3 {
			got, err := follow(soon(t), s, "k/", states[i], after, revs[until])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(states[until], got); diff != "" {
				t.Errorf("from %d to %d (-want +got):\n%s", after, revs[until], diff)
			}
		}
	}
}

// pull watches by hand; ended waits until the watch has yielded its error.
type pull struct {
	next func() (store.Batch, error, bool)
	stop func()
}

func pullWatch(ctx context.Context, s store.Store, prefix string, after store.Revision) pull {
	next, stop := iter.Pull2(s.Watch(ctx, prefix, after))
	return pull{next, stop}
}

// wantEnd takes one error and then nothing.
func (p pull) wantEnd(t *testing.T, what string, want error) {
	t.Helper()
	_, err, ok := p.next()
	if !ok || !errors.Is(err, want) {
		t.Errorf("%s: got error %v (%v), want %v", what, err, ok, want)
	}
	if b, err, ok := p.next(); ok {
		t.Errorf("%s: after its error the watch goes on with %v, %v", what, b, err)
	}
}

func testWatchWaits(t *testing.T, e Engine) {
	s := e.fresh(t)
	at := put(t, s, "a", "1")
	ctx, cancel := context.WithCancel(soon(t))
	var g errgroup.Group
	g.Go(func() error {
		time.Sleep(20 * time.Millisecond)
		_, err := s.Update(soon(t), func(tx store.RWTx) error {
			tx.Put("a", []byte("2"))
			return nil
		})
		return err
	})
	p := pullWatch(ctx, s, "a", at)
	defer p.stop()
	b, err, ok := p.next()
	if err != nil || !ok || b.Revision <= at || len(b.Events) != 1 || string(b.Events[0].Value) != "2" {
		t.Errorf("the next batch is %+v, %v", b, err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	g.Go(func() error {
		time.Sleep(20 * time.Millisecond)
		cancel()
		return nil
	})
	p.wantEnd(t, "a watch whose context ends", context.Canceled)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	q := pullWatch(ctx, s, "a", 0)
	defer q.stop()
	q.wantEnd(t, "a watch whose context has ended", context.Canceled)
}

// testWatchCompacted falls behind, is told so, and recovers as the contract
// says: read everything, watch from there.
func testWatchCompacted(t *testing.T, e Engine) {
	s := e.fresh(t)
	for i := range 20 {
		put(t, s, fmt.Sprintf("k/%d", i%5), fmt.Sprint(i))
	}
	old := head(t, s)
	update(t, s, func(tx store.RWTx) { tx.Delete("k/3") })
	e.Compact(t, s)
	for _, after := range []store.Revision{0, 1, old} {
		p := pullWatch(soon(t), s, "k/", after)
		p.wantEnd(t, fmt.Sprintf("a watch after %d, compacted", after), store.ErrCompacted)
		p.stop()
	}
	state, at, err := content(soon(t), s, "k/")
	if err != nil {
		t.Fatalf("View: %v", err)
	}
	put(t, s, "k/9", "new", "other", "")
	until := update(t, s, func(tx store.RWTx) { tx.Delete("k/1") })
	got, err := follow(soon(t), s, "k/", state, at, until)
	if err != nil {
		t.Fatalf("after a rescan: %v", err)
	}
	wantContent(t, s, "k/", got)
}

func testWatchAhead(t *testing.T, e Engine) {
	s := e.fresh(t)
	at := put(t, s, "a", "1")
	p := pullWatch(soon(t), s, "", at+1)
	defer p.stop()
	p.wantEnd(t, "a watch after a revision that never was", store.ErrCompacted)
}

// testWatchSlow has a watcher that does not move while writers do.
func testWatchSlow(t *testing.T, e Engine) {
	s := e.fresh(t)
	at := put(t, s, "a", "0")
	p := pullWatch(soon(t), s, "", 0)
	defer p.stop()
	if b, err, _ := p.next(); err != nil || b.Revision != at {
		t.Fatalf("first batch is %d, %v; want %d", b.Revision, err, at)
	}
	for i := range 200 {
		put(t, s, "a", fmt.Sprint(i))
	}
	last := head(t, s)
	for at < last {
		b, err, _ := p.next()
		if err != nil || b.Revision <= at {
			t.Fatalf("after %d came %d, %v", at, b.Revision, err)
		}
		at = b.Revision
	}
}

// testWatchHandOver does what every cache does at start, under writers: View,
// then Watch from its revision. Nothing may be lost or doubled in between.
func testWatchHandOver(t *testing.T, e Engine) {
	stores := e.handles(t, 2)
	j := &journal{batches: make(map[store.Revision]map[string]string)}
	var writers, caches errgroup.Group
	for client := range 4 {
		writers.Go(func() error { return j.write(soon(t), stores[client%2], client, 50) })
	}
	states := make([]map[string]string, 6)
	for i := range states {
		caches.Go(func() error {
			time.Sleep(time.Duration(i) * 2 * time.Millisecond)
			state, at, err := content(soon(t), stores[i%2], "")
			if err != nil {
				return err
			}
			for b, err := range stores[i%2].Watch(soon(t), "", at) {
				if err != nil {
					return err
				}
				if b.Revision <= at {
					return fmt.Errorf("batch %d came after a View at %d", b.Revision, at)
				}
				if err := apply(state, b); err != nil {
					return err
				}
				if _, ok := state[lastKey]; ok {
					break
				}
			}
			states[i] = state
			return nil
		})
	}
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	put(t, stores[0], lastKey, "")
	if err := caches.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, state := range states {
		wantContent(t, stores[1], "", state)
	}
}
