package bolt_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/store/storetest"
)

// TestFaults lets the disk refuse each operation of a few commits in turn. The
// child checks that the store tells its callers the truth; this side opens the
// file after it.
func TestFaults(t *testing.T) {
	t.Parallel()
	const updates = 5
	outcomes := make(map[opKind]int)
	for n := 0; ; n++ {
		path := tempPath(t)
		errno := []syscall.Errno{syscall.EIO, syscall.ENOSPC}[n%2]
		rec := &recorder{dir: filepath.Dir(path)}
		var refused *diskOp
		seen := 0
		rec.fail = func(op diskOp) syscall.Errno {
			// The store is made first; its first commit grows the file.
			if op.path != path || op.kind != opWrite && op.kind != opTruncate && op.kind != opSync {
				return 0
			}
			if seen++; seen-1 != n {
				return 0
			}
			refused = &op
			return errno
		}
		err := rec.run(fmt.Sprintf("faults %s 1 %d", path, updates))
		if errors.Is(err, errNoTrace) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatalf("refusing operation %d, %+v: %v", n, refused, err)
		}
		if refused == nil {
			break
		}
		outcomes[refused.kind]++
		var acked []storetest.Ack
		for _, op := range rec.ops {
			if op.kind == opAck {
				acked = append(acked, op.ack)
			}
		}
		if len(acked) == updates {
			t.Errorf("operation %d, %+v was refused and no update failed", n, refused)
		}
		s := open(t, bolt.Config{Path: path})
		if err := storetest.CheckCrash(t.Context(), s, acked); err != nil {
			t.Errorf("after refusing operation %d, %+v: %v", n, refused, err)
		}
		if err := checkPagesOf(t, s, path); err != nil {
			t.Errorf("after refusing operation %d, %+v: %v", n, refused, err)
		}
	}
	t.Logf("refused %d writes, %d truncates, %d syncs", outcomes[opWrite], outcomes[opTruncate], outcomes[opSync])
	if outcomes[opWrite] < updates || outcomes[opSync] < updates || outcomes[opTruncate] == 0 {
		t.Errorf("only %v operations were refused", outcomes)
	}
}

func checkPagesOf(t *testing.T, s *bolt.Store, path string) error {
	t.Helper()
	if err := s.Close(); err != nil {
		return err
	}
	return checkPages(path)
}

// TestDiskFull fills a real file system.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mountSmall(dir); err != nil {
		t.Skipf("needs the right to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	s := open(t, bolt.Config{Path: filepath.Join(dir, "datastore.bolt")})
	big := strings.Repeat("x", 100_000)
	var at store.Revision
	key := func(n int) string { return fmt.Sprintf("k/%04d", n) }
	n := 0
	for ; ; n++ {
		rev, err := s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Put(key(n), []byte(big))
			return nil
		})
		if err != nil {
			if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("Update on a full disk: %v", err)
			}
			break
		}
		at = rev
	}
	for range 3 { // It stays usable for reading …
		if got, err := s.Head(t.Context()); err != nil || got != at {
			t.Fatalf("Head on a full disk = %d, %v; want %d", got, err, at)
		}
		if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Put("more", []byte(big+big))
			return nil
		}); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("Update on a full disk: %v", err)
		}
		if err := s.Check(t.Context()); err != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("Check on a full disk: %v", err)
		}
	}
	if err := s.View(t.Context(), func(tx store.Tx) error {
		for i := range n {
			if kv, err := tx.Get(key(i)); err != nil || string(kv.Value) != big {
				return fmt.Errorf("%s: %d bytes, %w", key(i), len(kv.Value), err)
			}
		}
		_, err := tx.Get("more")
		if !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("what did not fit is there: %w", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// … and for what makes room.
	for i := range n / 2 {
		if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Delete(key(i))
			return nil
		}); err != nil {
			t.Fatalf("deleting on a full disk: %v", err)
		}
	}
	if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
		tx.Put("more", []byte(big+big))
		return nil
	}); err != nil {
		t.Fatalf("Update after making room: %v", err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check after making room: %v", err)
	}
}
