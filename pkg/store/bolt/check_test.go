package bolt_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/store/bolt"
)

// TestCheckRefusesWhatOpenRefuses, and changes nothing.
func TestCheckRefusesWhatOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(t *testing.T, path string){
		"a store": func(*testing.T, string) {},
		"none":    func(t *testing.T, path string) { check(t, os.Remove(path)) },
		"empty":   func(t *testing.T, path string) { check(t, os.Truncate(path, 0)) },
		"garbage": func(t *testing.T, path string) {
			check(t, os.WriteFile(path, bytes.Repeat([]byte("no store "), 4096), 0o600))
		},
		"cut short": func(t *testing.T, path string) { check(t, os.Truncate(path, 32<<10)) },
		"writable":  func(t *testing.T, path string) { check(t, os.Chmod(path, 0o602)) },
		"directory": func(t *testing.T, path string) {
			check(t, os.Remove(path))
			check(t, os.Mkdir(path, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := made(t)
			edit(t, path)
			before, _ := os.ReadFile(path)
			said := bolt.Check(path)
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("Check changed the file")
			}
			s, err := bolt.Open(bolt.Config{Path: path})
			if err == nil {
				// Whoever has it open is not disturbed, and nothing is wrong.
				if said := bolt.Check(path); said != nil {
					t.Errorf("while it is open: %v", said)
				}
				check(t, s.Close())
			}
			if (said == nil) != (err == nil) || (err != nil && !strings.Contains(said.Error(), path)) {
				t.Errorf("Check: %v\nOpen:  %v", said, err)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
