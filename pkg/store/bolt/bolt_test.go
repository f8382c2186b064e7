package bolt_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/store/storetest"
)

// open opens a store that the test's end closes.
func open(t testing.TB, cfg bolt.Config) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func opener(path string) storetest.Opener {
	return func(t testing.TB) store.Store { return open(t, bolt.Config{Path: path}) }
}

func tempPath(t testing.TB) string { return filepath.Join(t.TempDir(), "datastore.bolt") }

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.Engine{
		New: func(t testing.TB) storetest.Opener { return opener(tempPath(t)) },
		Restore: func(t testing.TB, backup io.Reader) storetest.Opener {
			path := tempPath(t)
			restore(t, path, backup)
			return opener(path)
		},
		Compact: func(_ testing.TB, s store.Store) { bolt.Compact(s.(*bolt.Store)) },
	})
}

// restore writes a backup into a file and renews its ID.
func restore(t testing.TB, path string, backup io.Reader) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, backup); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := bolt.Renew(path); err != nil {
		t.Fatalf("Renew: %v", err)
	}
}
