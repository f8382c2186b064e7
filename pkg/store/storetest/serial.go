package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

// testWriteSkew lets pairs of Updates each scan a range, decide, and write a
// key that the other has not read by name. Run one after the other, the second
// sees what the first did; only a store that guards ranges gives that outcome.
func testWriteSkew(t *testing.T, e Engine) {
	for _, c := range []struct {
		name  string
		setup func(tx store.RWTx, prefix string)
		// act is what each does when it finds the range undecided.
		act func(tx store.RWTx, prefix string, me int)
		// undecided says whether a scan shows that nobody has acted.
		undecided func(keys map[string]string) bool
	}{
		{
			name:      "insert",
			setup:     func(store.RWTx, string) {},
			act:       func(tx store.RWTx, prefix string, me int) { tx.Put(prefix+strconv.Itoa(me), []byte("mine")) },
			undecided: func(keys map[string]string) bool { return len(keys) == 0 },
		},
		{
			name: "update",
			setup: func(tx store.RWTx, prefix string) {
				tx.Put(prefix+"0", []byte("on"))
				tx.Put(prefix+"1", []byte("on"))
			},
			act:       func(tx store.RWTx, prefix string, me int) { tx.Put(prefix+strconv.Itoa(me), []byte("off")) },
			undecided: func(keys map[string]string) bool { return keys["0"] == "on" && keys["1"] == "on" },
		},
		{
			name: "delete",
			setup: func(tx store.RWTx, prefix string) {
				tx.Put(prefix+"0", []byte("on"))
				tx.Put(prefix+"1", []byte("on"))
			},
			act:       func(tx store.RWTx, prefix string, me int) { tx.Delete(prefix + strconv.Itoa(me)) },
			undecided: func(keys map[string]string) bool { return len(keys) == 2 },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			stores := e.handles(t, 2)
			for round := range 50 {
				prefix := fmt.Sprintf("r%d/", round)
				update(t, stores[0], func(tx store.RWTx) { c.setup(tx, prefix) })
				var acted [2]bool
				var g errgroup.Group
				for me := range 2 {
					g.Go(func() error {
						_, err := stores[me].Update(t.Context(), func(tx store.RWTx) error {
							keys := make(map[string]string)
							for kv, err := range tx.Scan(prefix, "") {
								if err != nil {
									return err
								}
								keys[kv.Key[len(prefix):]] = string(kv.Value)
							}
							if acted[me] = c.undecided(keys); acted[me] {
								c.act(tx, prefix, me)
							}
							return nil
						})
						return err
					})
				}
				if err := g.Wait(); err != nil {
					t.Fatal(err)
				}
				if acted[0] == acted[1] {
					t.Fatalf("round %d: acted %v: exactly one of two must have found the range undecided", round, acted)
				}
			}
		})
	}
}

// testTransfers moves money between accounts while readers add it up.
func testTransfers(t *testing.T, e Engine) {
	const accounts, sum = 10, 1000
	stores := e.handles(t, 2)
	name := func(i int) string { return "account/" + strconv.Itoa(i) }
	update(t, stores[0], func(tx store.RWTx) {
		for i := range accounts {
			tx.Put(name(i), []byte(strconv.Itoa(sum/accounts)))
		}
	})
	var done atomic.Bool
	var writers, readers errgroup.Group
	for i := range 8 {
		s, rng := stores[i%2], rand.New(rand.NewPCG(1, uint64(i)))
		writers.Go(func() error {
			for range 40 {
				from, to, amount := name(rng.IntN(accounts)), name(rng.IntN(accounts)), rng.IntN(20)
				if err := transfer(t.Context(), s, from, to, amount); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i := range 2 {
		readers.Go(func() error {
			var last store.Revision
			for !done.Load() {
				all, rev, err := content(t.Context(), stores[i], "account/")
				if err != nil {
					return err
				}
				if rev < last {
					return fmt.Errorf("revision of a View went back from %d to %d", last, rev)
				}
				last = rev
				if got := total(all); got != sum {
					return fmt.Errorf("at revision %d the accounts hold %d, want %d", rev, got, sum)
				}
			}
			return nil
		})
	}
	if err := writers.Wait(); err != nil {
		t.Error(err)
	}
	done.Store(true)
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}
}

func transfer(ctx context.Context, s store.Store, from, to string, amount int) error {
	_, err := s.Update(ctx, func(tx store.RWTx) error {
		for _, step := range []struct {
			name  string
			delta int
		}{{from, -amount}, {to, amount}} {
			kv, err := tx.Get(step.name)
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(string(kv.Value))
			if err != nil {
				return err
			}
			tx.Put(step.name, []byte(strconv.Itoa(n+step.delta)))
		}
		return nil
	})
	return err
}

func total(accounts map[string]string) (sum int) {
	for _, v := range accounts {
		n, err := strconv.Atoi(v)
		if err != nil {
			return -1
		}
		sum += n
	}
	return sum
}

// testSnapshot holds a View open while everything under it changes.
func testSnapshot(t *testing.T, e Engine) {
	s := e.fresh(t)
	value := make([]byte, 1000)
	key := func(i int) string { return fmt.Sprintf("k/%02d", i) }
	for i := range 100 {
		put(t, s, key(i), string(value))
	}
	at := head(t, s)
	err := s.View(t.Context(), func(tx store.Tx) error {
		n := 0
		for kv, err := range tx.Scan("k/", "") {
			if err != nil {
				return err
			}
			if kv.Key != key(n) || len(kv.Value) != len(value) || kv.ModRevision > at {
				return fmt.Errorf("found %s of revision %d", kv.Key, kv.ModRevision)
			}
			n++
			// Writers are not held up, and do not show.
			update(t, s, func(tx store.RWTx) {
				tx.Put(kv.Key, []byte("changed"))
				tx.Put(kv.Key+"x", []byte("new"))
				tx.Delete(key(99 - n/2))
			})
		}
		if n != 100 || tx.Revision() != at {
			return fmt.Errorf("found %d keys at revision %d, want 100 at %d", n, tx.Revision(), at)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if now := head(t, s); now <= at {
		t.Errorf("Head = %d after writing, was %d", now, at)
	}
}
