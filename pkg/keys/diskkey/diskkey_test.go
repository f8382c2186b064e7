package diskkey_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/diskkey"
	"github.com/credence-id/credence/pkg/keys/keystest"
)

func open(t testing.TB, path string) *diskkey.Manager {
	t.Helper()
	m, err := diskkey.New(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestManager(t *testing.T) {
	t.Parallel()
	keystest.Run(t, func(t testing.TB) keystest.Opener {
		path := filepath.Join(t.TempDir(), "keys.json")
		return func(t testing.TB) keys.Manager { return open(t, path) }
	})
}

// content is a file with one key in it.
func content(t *testing.T) (data []byte, key keys.Key) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.json")
	key, err := open(t, path).Generate(t.Context(), "slot", keys.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, key
}

func TestFileIsPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys.json")
	m := open(t, path)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opening made a file: %v", err)
	}
	if _, err := m.Generate(t.Context(), "slot", keys.ECP256); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode is %04o", got)
	}
	for _, mode := range []os.FileMode{0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o644, 0o666, 0o700, 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := diskkey.New(path)
		if !errors.Is(err, keys.ErrPermissions) {
			t.Errorf("mode %04o: %v, want ErrPermissions", mode, err)
			continue
		}
		if !strings.Contains(err.Error(), "chmod 0600 "+path) {
			t.Errorf("mode %04o: the error does not say what to do: %v", mode, err)
		}
	}
	for _, mode := range []os.FileMode{0o400, 0o600} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		open(t, path)
	}
}

func TestCorruptIsLeftAlone(t *testing.T) {
	t.Parallel()
	good, _ := content(t)
	text := string(good)
	for name, bad := range map[string]string{
		"empty":         "",
		"not JSON":      "-----BEGIN PRIVATE KEY-----\n",
		"null":          "null",
		"cut short":     text[:len(text)/2],
		"last byte":     strings.TrimSuffix(text, "}\n"),
		"twice":         text + text,
		"no format":     strings.Replace(text, `"format":"credence-keys-v1",`, "", 1),
		"next format":   strings.Replace(text, "keys-v1", "keys-v2", 1),
		"unknown field": strings.Replace(text, `{"format"`, `{"more":1,"format"`, 1),
		"bad id":        strings.Replace(text, `"slot"`, `"../slot"`, 1),
		"bad base64":    strings.Replace(text, `"slot":"M`, `"slot":"!`, 1),
		"bad key":       strings.Replace(text, `"slot":"MIGH`, `"slot":"MIGG`, 1),
		"zeros":         strings.Repeat("\x00", len(text)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if bad == text {
				t.Fatal("the damage did nothing")
			}
			path := filepath.Join(t.TempDir(), "keys.json")
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := diskkey.New(path)
			if !errors.Is(err, keys.ErrCorrupt) {
				t.Fatalf("New returns %v, want ErrCorrupt", err)
			}
			if !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name the file: %v", err)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != bad {
				t.Errorf("the file was changed: %q, %v", after, err)
			}
		})
	}
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		if _, err := diskkey.New(t.TempDir()); !errors.Is(err, keys.ErrCorrupt) {
			t.Errorf("New of a directory returns %v", err)
		}
	})
}

// TestCrashStates opens what a crash can leave at each step of a write:
// temporary file made, filled in part or whole, renamed.
func TestCrashStates(t *testing.T) {
	t.Parallel()
	before, oldKey := content(t)
	after, newKey := content(t)
	for name, c := range map[string]struct {
		file, temp []byte
		want       keys.Key
	}{
		"temporary made":   {before, []byte{}, oldKey},
		"temporary torn":   {before, after[:len(after)/2], oldKey},
		"temporary filled": {before, after, oldKey},
		"renamed":          {after, nil, newKey},
		"first, torn":      {nil, after[:1], keys.Key{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "keys.json")
			for p, data := range map[string][]byte{path: c.file, path + ".tmp123": c.temp, path + ".tmpfile": []byte("not ours")} {
				if data == nil {
					continue
				}
				if err := os.WriteFile(p, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := open(t, path).Get(t.Context(), "slot")
			switch {
			case c.want.Signer == nil:
				if !errors.Is(err, keys.ErrNotFound) {
					t.Errorf("Get returns %v", err)
				}
			case err != nil:
				t.Error(err)
			case !cmp.Equal(got.Signer.Public(), c.want.Signer.Public()):
				t.Error("it is another key")
			}
			left, err := filepath.Glob(path + ".tmp*")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{path + ".tmpfile"}, left); diff != "" {
				t.Errorf("left beside the file (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKilled kills a process that replaces a key over and over, and wants the
// last key that it announced, or the one it was about to.
func TestKilled(t *testing.T) {
	if path := os.Getenv("DISKKEY_VICTIM"); path != "" {
		victim(t, path)
		return
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys.json")
	for round := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "DISKKEY_VICTIM="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		var announced string
		for lines.Scan() {
			id, ok := strings.CutPrefix(lines.Text(), "kept ")
			if ok && announced == "" {
				time.AfterFunc(time.Duration(1+3*round)*time.Millisecond, func() {
					if err := cmd.Process.Kill(); err != nil {
						t.Error(err)
					}
				})
			}
			if ok {
				announced = id
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the victim ended by itself")
		}
		held, err := open(t, path).List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if announced == "" || len(held) == 0 || held[len(held)-1].ID < announced {
			t.Fatalf("round %d: %q was announced, the file has %d keys", round, announced, len(held))
		}
	}
}

// victim counts up in the ids it makes, keeping the last few.
func victim(t *testing.T, path string) {
	m := open(t, path)
	const width = 6
	for n := 0; ; n++ {
		id := keyID(n, width)
		if _, err := m.Generate(t.Context(), id, keys.ECP256); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stdout.WriteString("kept " + id + "\n"); err != nil {
			t.Fatal(err)
		}
		if n > 3 {
			if err := m.Delete(t.Context(), keyID(n-3, width)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func keyID(n, width int) string {
	digits := make([]byte, width)
	for i := width - 1; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return "k" + string(digits)
}

func TestUnwritable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "missing", "keys.json")
	_, err := diskkey.New(path)
	if err == nil || !strings.Contains(err.Error(), filepath.Dir(path)) {
		t.Errorf("New in a directory that is not there returns %v", err)
	}

	// A directory in the file's place fails the write, for root too.
	path = filepath.Join(t.TempDir(), "keys.json")
	m := open(t, path)
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Generate(t.Context(), "slot", keys.ECP256); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Generate returns %v, want an error that names %s", err, path)
	}
	if _, err := m.Get(t.Context(), "slot"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("a key that was not kept is there: %v", err)
	}
}
