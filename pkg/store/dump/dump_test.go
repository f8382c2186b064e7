package dump_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/store/dump"
)

// What needs both engines is tested beside the etcd engine, which has one of
// etcd: copy_test.go there.

// written is the stream of a store with some keys, and the store.
func written(t testing.TB, keys ...string) (store.Store, []byte) {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
		for _, k := range keys {
			tx.Put(k, []byte("value of "+k))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := dump.Write(t.Context(), s, &stream, nil); err != nil {
		t.Fatal(err)
	}
	return s, stream.Bytes()
}

// TestDamaged flips every byte of a small stream, and cuts it everywhere.
func TestDamaged(t *testing.T) {
	t.Parallel()
	source, good := written(t, "a", "b", "c/d")
	refused := func(what string, b []byte) {
		t.Helper()
		if _, err := dump.Verify(bytes.NewReader(b)); !errors.Is(err, dump.ErrDamaged) && !errors.Is(err, dump.ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range good {
		refused(fmt.Sprintf("cut at %d", i), good[:i])
		for _, bit := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= bit
			refused(fmt.Sprintf("byte %d changed by %#x", i, bit), bad)
		}
	}
	refused("more at its end", append(bytes.Clone(good), 0))
	at := bytes.IndexByte(good, '\n') + 2 // the length of the header's frame
	_, n := binary.Uvarint(good[at:])
	longer := append(bytes.Clone(good[at:at+n]), 0)
	longer[n-1] |= 0x80
	for what, length := range map[string][]byte{
		"a length over 64 bits":           bytes.Repeat([]byte{0xff}, binary.MaxVarintLen64+1),
		"a length over every frame's":     binary.AppendUvarint(nil, 1<<40),
		"a length in more than its bytes": longer,
	} {
		refused(what, slices.Concat(good[:at], length, good[at+n:]))
	}
	newer := bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1)
	if _, err := dump.Verify(bytes.NewReader(newer)); !errors.Is(err, dump.ErrFormat) || !strings.Contains(err.Error(), "newer program") {
		t.Errorf("a newer version: %v", err)
	}
	if _, err := dump.Verify(brokenPipe{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a reader that fails: %v", err)
	}
	if _, err := dump.Write(t.Context(), source, brokenPipe{}, nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a writer that fails: %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Read([]byte) (int, error)  { return 0, io.ErrClosedPipe }
func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// FuzzVerify reads anything: it ends, and takes only what Write would write.
func FuzzVerify(f *testing.F) {
	_, good := written(f, "a")
	f.Add(good)
	f.Add([]byte("credence store dump\n"))
	f.Add(slices.Concat([]byte("credence store dump\nh"), bytes.Repeat([]byte{0xff}, 11))) // no length
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := dump.Verify(bytes.NewReader(b)); err != nil && !errors.Is(err, dump.ErrDamaged) && !errors.Is(err, dump.ErrFormat) {
			t.Errorf("Verify: %v", err)
		}
	})
}
