package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/store/dump"
)

// engines open a new, empty store, which the test's end closes.
var engines = map[string]func(testing.TB) store.Store{
	"bolt": func(t testing.TB) store.Store {
		s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
		return closed(t, s, err)
	},
	"etcd": func(t testing.TB) store.Store {
		return open(t, fresh(t))
	},
}

func closed(t testing.TB, s store.Store, err error) store.Store {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// content is everything in a store.
func content(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	all := make(map[string]string)
	if err := s.View(t.Context(), func(tx store.Tx) error {
		for kv, err := range tx.Scan("", "") {
			if err != nil {
				return err
			}
			all[kv.Key] = string(kv.Value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// grow fills a store with n small values, a few large ones and odd keys.
func grow(t testing.TB, s store.Store, n int) map[string]string {
	t.Helper()
	all := map[string]string{
		"\x00": "first", "\x00restorinh": "beside the marker", "\xff\xff": "last", "empty": "", "a/\x00/b": "\x00\xff",
		"large/1": strings.Repeat("x", 1<<20-100), "large/2": strings.Repeat("y", 1<<20-100),
		strings.Repeat("k", store.MaxKey): "a long key",
	}
	for i := range n {
		// Times differ by microseconds, as those of entries made one after another.
		at := time.Date(2026, 1, 2, 3, 4, 5, i*1000, time.UTC)
		all[fmt.Sprintf("e/%08d", i)] = at.Format(time.RFC3339Nano) + string(rune(i))
	}
	var part []string
	size := 0
	flush := func() {
		if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
			for _, k := range part {
				tx.Put(k, []byte(all[k]))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		part, size = nil, 0
	}
	for k, v := range all {
		if len(part) == store.MaxOps || size+len(k)+len(v) > store.MaxBytes {
			flush()
		}
		part, size = append(part, k), size+len(k)+len(v)
	}
	flush()
	return all
}

// TestCopy copies between engines in each direction.
func TestCopy(t *testing.T) {
	t.Parallel()
	for from, open := range engines {
		for to, openTo := range engines {
			t.Run(from+" to "+to, func(t *testing.T) {
				t.Parallel()
				source, target := open(t), openTo(t)
				want := grow(t, source, 1500)
				told := 0
				sum, err := dump.Copy(t.Context(), source, target, func(s dump.Summary) {
					if s.Keys < told {
						t.Errorf("progress went back from %d to %d", told, s.Keys)
					}
					told = s.Keys
				})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, content(t, target)); diff != "" {
					t.Errorf("(-source +copy):\n%.2000s", diff)
				}
				if sum.Keys != len(want) || told != sum.Keys || sum.StoreID != source.Info().ID || sum.Engine != from {
					t.Errorf("summary %+v of %d keys, told of %d", sum, len(want), told)
				}
				if target.Info().ID == source.Info().ID {
					t.Error("the copy has the ID of the source")
				}
				if err := dump.CheckWhole(t.Context(), target); err != nil {
					t.Errorf("CheckWhole: %v", err)
				}
				if diff := cmp.Diff(want, content(t, source)); diff != "" {
					t.Errorf("the source has changed: %.2000s", diff)
				}
			})
		}
	}
}

// TestRead restores streams into stores that are empty, not empty, and left by
// a restore that was broken off.
func TestRead(t *testing.T) {
	t.Parallel()
	source := engines["bolt"](t)
	want := grow(t, source, 600)
	var stream bytes.Buffer
	sum, err := dump.Write(t.Context(), source, &stream, nil)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := dump.Verify(bytes.NewReader(stream.Bytes()))
	if diff := cmp.Diff(sum, verified); diff != "" || err != nil {
		t.Errorf("Verify: %v (-written +read):\n%s", err, diff)
	}
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			read := func(r io.Reader) error {
				_, err := dump.Read(t.Context(), r, s, nil)
				return err
			}
			cut := stream.Bytes()[:stream.Len()-1000]
			if err := read(bytes.NewReader(cut)); !errors.Is(err, dump.ErrDamaged) {
				t.Errorf("Read of half a stream: %v", err)
			}
			left := len(content(t, s))
			if err := dump.CheckWhole(t.Context(), s); !errors.Is(err, dump.ErrIncomplete) || left < 100 {
				t.Errorf("after half a restore the store has %d keys; CheckWhole: %v", left, err)
			}
			if _, err := dump.Write(t.Context(), s, io.Discard, nil); !errors.Is(err, dump.ErrIncomplete) {
				t.Errorf("Write of an incomplete store: %v", err)
			}
			put(t, s, "e/of nobody", "")
			ctx, cancel := context.WithCancel(t.Context())
			if _, err := dump.Read(ctx, &stopping{bytes.NewReader(stream.Bytes()), 300_000, cancel}, s, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("Read that is ended: %v", err)
			}
			if err := read(bytes.NewReader(stream.Bytes())); err != nil {
				t.Fatalf("Read: %v", err)
			}
			if diff := cmp.Diff(want, content(t, s)); diff != "" {
				t.Errorf("(-written +read):\n%.2000s", diff)
			}
			if err := read(bytes.NewReader(stream.Bytes())); !errors.Is(err, dump.ErrNotEmpty) {
				t.Errorf("Read into what is there: %v", err)
			}
			if diff := cmp.Diff(want, content(t, s)); diff != "" {
				t.Errorf("after a refused Read (-before +after):\n%.2000s", diff)
			}
		})
	}
}

// stopping ends a context after so many bytes.
type stopping struct {
	io.Reader
	left int
	stop func()
}

func (s *stopping) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b[:min(len(b), 1000)])
	if s.left -= n; s.left < 0 {
		s.stop()
	}
	return n, err
}

// TestTaken begins a second restore while the first one is under way: the first
// gives up.
func TestTaken(t *testing.T) {
	t.Parallel()
	source := engines["bolt"](t)
	want := grow(t, source, 600)
	var stream bytes.Buffer
	if _, err := dump.Write(t.Context(), source, &stream, nil); err != nil {
		t.Fatal(err)
	}
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			second := func() {
				if _, err := dump.Read(t.Context(), bytes.NewReader(stream.Bytes()), s, nil); err != nil {
					t.Errorf("the second: %v", err)
				}
			}
			_, err := dump.Read(t.Context(), &stopping{bytes.NewReader(stream.Bytes()), 300_000, func() {
				if second != nil {
					second()
					second = nil
				}
			}}, s, nil)
			if err == nil || !strings.Contains(err.Error(), "another restore") {
				t.Errorf("the first: %v", err)
			}
			if diff := cmp.Diff(want, content(t, s)); diff != "" {
				t.Errorf("(-written +read):\n%.2000s", diff)
			}
		})
	}
}

// TestWriteIsOneMoment writes while others do.
func TestWriteIsOneMoment(t *testing.T) {
	t.Parallel()
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			grow(t, s, 1500)
			before := content(t, s)
			ran := false
			var stream bytes.Buffer
			if _, err := dump.Write(t.Context(), s, &stream, func(dump.Summary) {
				if !ran {
					ran = true
					put(t, s, "zzz", "")
					put(t, s, "e/00000001", "")
				}
			}); err != nil {
				t.Fatal(err)
			}
			copied := engines["bolt"](t)
			if _, err := dump.Read(t.Context(), &stream, copied, nil); err != nil {
				t.Fatal(err)
			}
			if got := content(t, copied); !ran || !maps.Equal(before, got) {
				t.Errorf("the copy has %d keys, there were %d", len(got), len(before))
			}
		})
	}
}
