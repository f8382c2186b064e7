package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

// op is one call, as the model understands it.
type op struct {
	kind  string // put, delete, incr, insert (if the range is empty), get, scan, head, fail
	key   string
	value string
}

// outcome is what the call returned.
type outcome struct {
	rev   store.Revision // of the commit, of the snapshot read, or the head
	seen  string         // what was read
	wrote bool
}

// world is the model's state: one map and the revision it has.
type world struct {
	keys map[string]string
	rev  store.Revision
}

func (w world) scan(prefix string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(w.keys)) {
		if strings.HasPrefix(k, prefix) {
			fmt.Fprintf(&b, "%s=%s;", k, w.keys[k])
		}
	}
	return b.String()
}

// step is the sequential store. A revision is given by the store; the model
// asks that a commit's is greater than all before, and that everything read
// has the newest.
func (w world) step(in op, out outcome) (bool, world) {
	next := world{keys: w.keys, rev: w.rev}
	change := func(key string, value *string) {
		next.keys = maps.Clone(w.keys)
		if value == nil {
			delete(next.keys, key)
		} else {
			next.keys[key] = *value
		}
		next.rev = out.rev
	}
	have, there := w.keys[in.key]
	wrote, seen := false, ""
	switch in.kind {
	case "put":
		wrote = true
		change(in.key, &in.value)
	case "delete":
		if wrote = there; there {
			change(in.key, nil)
		}
	case "incr":
		n, _ := strconv.Atoi(have)
		value := strconv.Itoa(n + 1)
		wrote, seen = true, have
		change(in.key, &value)
	case "insert":
		seen = w.scan(in.key)
		if wrote = seen == ""; wrote {
			change(in.key+"/"+in.value, &in.value)
		}
	case "get":
		seen = have
	case "scan":
		seen = w.scan(in.key)
	case "fail":
		// It says nothing of what it read.
		return true, w
	}
	if out.wrote != wrote || out.seen != seen {
		return false, w
	}
	if wrote {
		return out.rev > w.rev, next
	}
	return out.rev == w.rev, w
}

var errOnPurpose = errors.New("on purpose")

// perform makes the call on the real store.
func perform(ctx context.Context, s store.Store, in op) (out outcome, err error) {
	switch in.kind {
	case "head":
		out.rev, err = s.Head(ctx)
	case "get", "scan":
		err = s.View(ctx, func(tx store.Tx) error {
			out.rev = tx.Revision()
			out.seen, err = look(tx, in)
			return err
		})
	default:
		out.rev, err = s.Update(ctx, func(tx store.RWTx) (err error) {
			out, err = change(tx, in)
			return err
		})
		if in.kind == "fail" && errors.Is(err, errOnPurpose) {
			err = nil
		}
	}
	return out, err
}

func look(tx store.Tx, in op) (string, error) {
	if in.kind == "get" {
		kv, err := tx.Get(in.key)
		if errors.Is(err, store.ErrNotFound) {
			return "", nil
		}
		return string(kv.Value), err
	}
	all, err := scanned(tx, in.key, "")
	seen := strings.Join(all, ";")
	if seen != "" {
		seen += ";"
	}
	return seen, err
}

func change(tx store.RWTx, in op) (out outcome, err error) {
	out.wrote = true
	switch in.kind {
	case "put":
		tx.Put(in.key, []byte(in.value))
	case "delete":
		_, err := tx.Get(in.key)
		out.wrote = err == nil
		tx.Delete(in.key)
	case "incr":
		out.seen, err = look(tx, op{kind: "get", key: in.key})
		n, _ := strconv.Atoi(out.seen)
		tx.Put(in.key, []byte(strconv.Itoa(n+1)))
	case "insert":
		out.seen, err = look(tx, op{kind: "scan", key: in.key})
		if out.wrote = out.seen == ""; out.wrote {
			tx.Put(in.key+"/"+in.value, []byte(in.value))
		}
	case "fail":
		tx.Put(in.key, []byte("never"))
		tx.Delete("a")
		return out, errOnPurpose
	}
	return out, err
}

// testLinearizable records what concurrent clients did and saw, and looks for
// one order of all calls that explains it and respects real time.
func testLinearizable(t *testing.T, e Engine) {
	const clients, calls = 6, 60
	stores := e.handles(t, clients)
	base := head(t, stores[0])
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var g errgroup.Group
	for id := range clients {
		rng := rand.New(rand.NewPCG(uint64(start.UnixNano()), uint64(id)))
		kinds := []string{"put", "put", "delete", "incr", "incr", "insert", "get", "scan", "head", "fail"}
		g.Go(func() error {
			for n := range calls {
				in := op{
					kind:  kinds[rng.IntN(len(kinds))],
					key:   []string{"a", "b", "c"}[rng.IntN(3)],
					value: fmt.Sprintf("%d%03d", id, n),
				}
				call := time.Since(start)
				out, err := perform(t.Context(), stores[id], in)
				if err != nil {
					return fmt.Errorf("%s %s: %w", in.kind, in.key, err)
				}
				o := porcupine.Operation{
					ClientId: id, Input: in, Output: out,
					Call: int64(call), Return: int64(time.Since(start)),
				}
				mu.Lock()
				history = append(history, o)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	model := porcupine.Model{
		Init: func() any { return world{keys: map[string]string{}, rev: base} },
		Step: func(state, in, out any) (bool, any) {
			return state.(world).step(in.(op), out.(outcome))
		},
		Equal: func(a, b any) bool {
			x, y := a.(world), b.(world)
			return x.rev == y.rev && maps.Equal(x.keys, y.keys)
		},
		Hash: func(state any) uint64 { return uint64(state.(world).rev) },
	}
	if got := porcupine.CheckOperationsTimeout(model, history, time.Minute); got != porcupine.Ok {
		for _, o := range history {
			t.Logf("client %d, %d–%d: %+v → %+v", o.ClientId, o.Call, o.Return, o.Input, o.Output)
		}
		t.Errorf("the history of %d calls is not linearizable: %s", len(history), got)
	}
}
