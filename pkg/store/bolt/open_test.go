package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// made creates a store with some keys and closes it.
func made(t testing.TB) (path string) {
	t.Helper()
	path = tempPath(t)
	s := open(t, bolt.Config{Path: path})
	for i := range 50 {
		if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Put(fmt.Sprintf("k/%d", i), bytes.Repeat([]byte("x"), 1000))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cfg  bolt.Config
		want string
	}{
		"no path":       {bolt.Config{}, "path is empty"},
		"negative mmap": {bolt.Config{Path: "x", MmapSize: -1}, "mmap_size"},
		"negative ring": {bolt.Config{Path: "x", RingBatches: -1}, "ring_batches"},
		"small ring":    {bolt.Config{Path: "x", RingBytes: 4*store.MaxBytes - 1}, "ring_bytes"},
	} {
		if _, err := bolt.Open(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Open: %v, want it to name %q", name, err, c.want)
		}
	}
	if err := (&bolt.Config{Path: "x", RingBytes: 4 * store.MaxBytes}).Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
}

// TestOpenRefuses opens what is not a usable store: each time one clear error
// that names the path, and nothing is changed.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	write := func(content []byte) func(*testing.T) string {
		return func(t *testing.T) string {
			path := tempPath(t)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	for name, c := range map[string]struct {
		path func(*testing.T) string
		want string
		is   error
	}{
		"newer format": {path: func(t *testing.T) string {
			path := made(t)
			if err := bolt.SetFormat(path, "7"); err != nil {
				t.Fatal(err)
			}
			return path
		}, want: "has format 7, this program knows up to 1", is: store.ErrFormat},
		"unreadable format": {path: func(t *testing.T) string {
			path := made(t)
			if err := bolt.SetFormat(path, "x"); err != nil {
				t.Fatal(err)
			}
			return path
		}, want: "format version"},
		"no directory": {path: func(t *testing.T) string {
			return filepath.Join(t.TempDir(), "absent", "datastore.bolt")
		}, want: "does not exist: create it"},
		"unwritable directory": {path: func(*testing.T) string {
			return "/sys/credence.bolt" // Not even root can make a file there.
		}, want: "must be writable by uid"},
		"a directory":   {path: func(t *testing.T) string { return t.TempDir() }, want: "not a regular file"},
		"an empty file": {path: write(nil), want: "is empty"},
		"a text":        {path: write([]byte("hello")), want: "not a store"},
		"a long text":   {path: write(bytes.Repeat([]byte("hello "), 10_000)), want: "not a store"},
		"SQLite":        {path: write(append([]byte("SQLite format 3\x00"), make([]byte, 1<<16)...)), want: "not a store"},
		"anybody's": {path: func(t *testing.T) string {
			path := made(t)
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
			return path
		}, want: "chmod 0600"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := c.path(t)
			before, _ := os.ReadFile(path) // Not always a file.
			s, err := bolt.Open(bolt.Config{Path: path})
			if err == nil {
				t.Fatalf("opened %s", errors.Join(s.Close()))
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Dir(path)) {
				t.Errorf("Open: %v; want it to say %q and to name the path", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("Open: %v, want %v", err, c.is)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("Open changed what it refused")
			}
		})
	}
}

// TestOpenDamaged cuts and flips a good file in many ways: it opens or is
// refused, but never takes the process down.
func TestOpenDamaged(t *testing.T) {
	t.Parallel()
	var whole bytes.Buffer
	if _, err := open(t, bolt.Config{Path: made(t)}).Backup(t.Context(), &whole); err != nil {
		t.Fatal(err)
	}
	good := whole.Bytes()
	rng := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for i := range 200 {
		bad := bytes.Clone(good)
		if i%2 == 0 {
			bad = bad[:1+rng.IntN(len(bad)-1)]
		} else {
			for range 1 + rng.IntN(20) {
				bad[rng.IntN(8*pageSize)] ^= byte(1 + rng.IntN(255))
			}
		}
		path := tempPath(t)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := bolt.Open(bolt.Config{Path: path})
		if err == nil {
			err = s.Close()
		} else if refused++; !strings.Contains(err.Error(), path) {
			t.Errorf("error does not name the file: %v", err)
		}
		if err != nil && !strings.Contains(err.Error(), "store: ") {
			t.Errorf("Open or Close: %v", err)
		}
	}
	t.Logf("%d of 200 damaged files were refused", refused)
	if refused < 100 {
		t.Errorf("only %d of 200 damaged files were refused, 100 were cut short", refused)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	path := tempPath(t)
	s := open(t, bolt.Config{Path: path})
	start := time.Now()
	_, err := bolt.Open(bolt.Config{Path: path})
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("second Open: %v, want %v with the path", err, store.ErrLocked)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the second Open took %v", took)
	}
	if err := bolt.Renew(path); !errors.Is(err, store.ErrLocked) {
		t.Errorf("Renew of an open store: %v, want %v", err, store.ErrLocked)
	}
	// Another process is told the same.
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = childEnviron(fmt.Sprintf("load %s 1 1", path))
	said, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(said), "in use by another process") {
		t.Errorf("second process: %v, %s", err, said)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, bolt.Config{Path: path})
}

// TestOpenRace makes one store from many sides at once.
func TestOpenRace(t *testing.T) {
	t.Parallel()
	for range 5 {
		path := tempPath(t)
		var opened atomic.Int64
		var stores sync.Map
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				s, err := bolt.Open(bolt.Config{Path: path})
				switch {
				case err == nil:
					opened.Add(1)
					stores.Store(i, s)
				case !errors.Is(err, store.ErrLocked):
					t.Errorf("Open: %v", err)
				}
			})
		}
		wg.Wait()
		if n := opened.Load(); n != 1 {
			t.Errorf("%d opened the store, want 1", n)
		}
		stores.Range(func(_, s any) bool {
			if err := s.(*bolt.Store).Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			return true
		})
		left, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(left) != 1 {
			t.Errorf("making the store left %v, %v", left, err)
		}
	}
}

func TestMode(t *testing.T) {
	t.Parallel()
	path := made(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a new store has mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o660); err != nil { // As fsGroup does.
		t.Fatal(err)
	}
	var log bytes.Buffer
	open(t, bolt.Config{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if !strings.Contains(log.String(), "WARN") || !strings.Contains(log.String(), path) {
		t.Errorf("no warning of mode 0660: %s", &log)
	}
}

func TestRenew(t *testing.T) {
	t.Parallel()
	path := made(t)
	before := open(t, bolt.Config{Path: path})
	old, err := before.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	if err := bolt.Renew(path); err != nil {
		t.Fatalf("Renew: %v", err)
	}
	after := open(t, bolt.Config{Path: path})
	head, err := after.Head(t.Context())
	if err != nil || head != old {
		t.Errorf("Head = %d, %v after Renew, was %d", head, err, old)
	}
	if a, b := before.Info().ID, after.Info().ID; a == b || len(b) != 32 {
		t.Errorf("ID is %q after Renew, was %q", b, a)
	}
	absent := tempPath(t)
	if err := bolt.Renew(absent); err == nil {
		t.Error("renewed what is not there")
	}
	if _, err := os.Stat(absent); err == nil {
		t.Error("Renew made a file")
	}
}
