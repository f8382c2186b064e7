package storetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/credence-id/credence/pkg/store"
)

// testModel makes random Updates, each of random reads and writes, and
// compares every answer with a sorted map; between them it watches, reads and
// opens the store again.
func testModel(t *testing.T, e Engine) {
	open := e.New(t)
	m := &machine{store: open(t)}
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		m.t, m.prefix = rt, fmt.Sprintf("%d/", round)
		m.state = map[string]string{}
		m.watched, m.seen = m.head(), map[string]string{}
		rt.Repeat(map[string]func(*rapid.T){
			"update": m.update,
			"view":   m.view,
			"watch":  m.watch,
			"reopen": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "seldom") != 0 {
					rt.Skip()
				}
				info, at := m.store.Info(), m.head()
				if err := m.store.Close(); err != nil {
					rt.Fatalf("Close: %v", err)
				}
				m.store = open(t)
				if diff := cmp.Diff(info, m.store.Info()); diff != "" || m.head() != at {
					rt.Fatalf("opened again at %d, was %d; info (-want +got):\n%s", m.head(), at, diff)
				}
				m.watched, m.seen = at, maps.Clone(m.state)
			},
		})
	})
}

// machine runs the store beside its model.
type machine struct {
	store  store.Store
	t      *rapid.T
	prefix string
	state  map[string]string
	// seen is what a watcher has made of the batches up to watched.
	seen    map[string]string
	watched store.Revision
}

var anyKey = rapid.StringOfN(rapid.SampledFrom([]rune{'a', 'b', '/', 0}), 0, 3, -1)

func (m *machine) head() store.Revision {
	at, err := m.store.Head(m.t.Context())
	if err != nil {
		m.t.Fatalf("Head: %v", err)
	}
	return at
}

func (m *machine) update(rt *rapid.T) {
	before := m.head()
	steps := rapid.IntRange(0, 12).Draw(rt, "steps")
	fails := rapid.IntRange(0, 4).Draw(rt, "fails") == 0
	var next map[string]string
	rev, err := m.store.Update(rt.Context(), func(tx store.RWTx) error {
		next = maps.Clone(m.state)
		for range steps {
			m.step(rt, tx, next)
		}
		if fails {
			return errOnPurpose
		}
		return nil
	})
	switch {
	case fails && !errors.Is(err, errOnPurpose):
		rt.Fatalf("Update: got error %v, want %v", err, errOnPurpose)
	case fails:
		return
	case err != nil:
		rt.Fatalf("Update: %v", err)
	case rev < before || rev == before && !maps.Equal(next, m.state):
		rt.Fatalf("Update returned %d after %d", rev, before)
	}
	m.state = next
}

// step does one random thing to the transaction and to the model.
func (m *machine) step(rt *rapid.T, tx store.RWTx, model map[string]string) {
	key := m.prefix + anyKey.Draw(rt, "key")
	switch rapid.SampledFrom([]string{"put", "put", "delete", "get", "scan", "sweep"}).Draw(rt, "step") {
	case "put":
		value := rapid.StringN(0, 4, 4).Draw(rt, "value")
		tx.Put(key, []byte(value))
		model[key] = value
	case "delete":
		tx.Delete(key)
		delete(model, key)
	case "get":
		m.get(rt, tx, model, key)
	case "scan":
		m.scan(rt, tx, model, key)
	case "sweep": // Deletes while scanning.
		for kv, err := range tx.Scan(key, "") {
			if err != nil {
				rt.Fatalf("Scan(%q): %v", key, err)
			}
			tx.Delete(kv.Key)
			delete(model, kv.Key)
			if len(model)%3 == 0 {
				break
			}
		}
	}
}

func (m *machine) get(rt *rapid.T, tx store.Tx, model map[string]string, key string) {
	want, there := model[key]
	kv, err := tx.Get(key)
	if there != (err == nil) || err != nil && !errors.Is(err, store.ErrNotFound) || string(kv.Value) != want {
		rt.Fatalf("Get(%q) = %q, %v; want %q, there: %v", key, kv.Value, err, want, there)
	}
}

func (m *machine) scan(rt *rapid.T, tx store.Tx, model map[string]string, prefix string) {
	after := ""
	if rapid.Bool().Draw(rt, "from the middle") {
		after = m.prefix + anyKey.Draw(rt, "after")
	}
	want := []string{}
	for _, k := range slices.Sorted(maps.Keys(model)) {
		if strings.HasPrefix(k, prefix) && k > after {
			want = append(want, k+"="+model[k])
		}
	}
	got, err := scanned(tx, prefix, after)
	if err != nil {
		rt.Fatalf("Scan(%q, %q): %v", prefix, after, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		rt.Fatalf("Scan(%q, %q) (-want +got):\n%s", prefix, after, diff)
	}
}

func (m *machine) view(rt *rapid.T) {
	at := m.head()
	err := m.store.View(rt.Context(), func(tx store.Tx) error {
		if tx.Revision() != at {
			rt.Fatalf("View is at %d, Head at %d", tx.Revision(), at)
		}
		m.get(rt, tx, m.state, m.prefix+anyKey.Draw(rt, "key"))
		m.scan(rt, tx, m.state, m.prefix)
		return nil
	})
	if err != nil {
		rt.Fatalf("View: %v", err)
	}
}

func (m *machine) watch(rt *rapid.T) {
	// With the prefix of everything, so that the head is among what is seen.
	at := m.head()
	got, err := follow(rt.Context(), m.store, "", m.seen, m.watched, at)
	if err != nil {
		rt.Fatalf("%v", err)
	}
	if diff := cmp.Diff(m.state, got); diff != "" {
		rt.Fatalf("batches from %d to %d (-want +got):\n%s", m.watched, at, diff)
	}
	m.seen, m.watched = got, at
}
