package bolt_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// What is written into a file that was removed goes with the process, so it is
// never acknowledged; once the file is back, the store goes on.
func TestNothingIsAcknowledgedWithoutTheFile(t *testing.T) {
	t.Parallel()
	path := tempPath(t)
	s := open(t, bolt.Config{Path: path})
	put := func() error {
		_, err := s.Update(t.Context(), func(tx store.RWTx) error {
			tx.Put("k", []byte("v"))
			return nil
		})
		return err
	}
	away := path + ".away"
	if err := os.Rename(path, away); err != nil {
		t.Fatal(err)
	}
	if err := put(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "restart to begin anew") {
		t.Errorf("with the file gone: %v", err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Check with the file gone: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := put(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "not the file that was opened") {
		t.Errorf("with another file in its place: %v", err)
	}
	if err := os.Rename(away, path); err != nil {
		t.Fatal(err)
	}
	before, err := s.Head(t.Context())
	if err := errors.Join(err, s.Check(t.Context())); err != nil { // It tries.
		t.Errorf("Check with the file back: %v", err)
	}
	if now, err := s.Head(t.Context()); err != nil || now != before {
		t.Errorf("Check moved the head from %d to %d, %v", before, now, err)
	}
	if err := put(); err != nil {
		t.Errorf("with the file back: %v", err)
	}
}
