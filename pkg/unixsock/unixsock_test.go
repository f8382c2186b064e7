package unixsock

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestListen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "api.sock")
	l, err := Listen(t.Context(), path, 0o770, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o770 {
		t.Errorf("socket permissions %o, want 770", got)
	}
	if _, err := Listen(t.Context(), path, 0o770, 0o755); !errors.Is(err, ErrInUse) {
		t.Errorf("listening beside a living process: %v, want ErrInUse", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket is still there after Close: %v", err)
	}
}

func TestListenTakesOverStaleSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "api.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), path, 0o777, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
}

func TestListenLeavesFilesAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path, 0o777, 0o755); !errors.Is(err, ErrNotSocket) {
		t.Errorf("listening over a file: %v, want ErrNotSocket", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "data" {
		t.Errorf("the file is now %q, %v", got, err)
	}
}

func TestListenPathTooLong(t *testing.T) {
	t.Parallel()
	_, err := Listen(t.Context(), "/tmp/"+strings.Repeat("x", 120), 0o777, 0o755)
	if err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("got %v, want an error that names the limit", err)
	}
}

// TestListenAtOnce: one socket's umask is not the other's directory's mode.
func TestListenAtOnce(t *testing.T) {
	t.Parallel()
	for range 20 {
		root := t.TempDir()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				dir := filepath.Join(root, strconv.Itoa(i))
				l, err := Listen(t.Context(), filepath.Join(dir, "s"), 0o777, 0o755)
				if err != nil {
					t.Error(err)
					return
				}
				defer l.Close()
				if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
					t.Errorf("%v, %v, want mode 755", info.Mode(), err)
				}
			})
		}
		wg.Wait()
	}
}

// TestListenMakesDirectoriesAsAsked: those who may open the socket get there,
// whatever umask the process was started with. It runs alone, since the umask is
// the whole process's.
func TestListenMakesDirectoriesAsAsked(t *testing.T) {
	root := t.TempDir()
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	l, err := Listen(t.Context(), filepath.Join(root, "a", "b", "api.sock"), 0o777, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]fs.FileMode{"a": 0o755, "a/b": 0o755, "a/b/api.sock": 0o777} {
		if info, err := os.Stat(filepath.Join(root, path)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %o", path, info, err, want)
		}
	}
	// What is there is not ours to change.
	narrow := filepath.Join(root, "narrow")
	if err := os.Mkdir(narrow, 0o700); err != nil {
		t.Fatal(err)
	}
	l2, err := Listen(t.Context(), filepath.Join(narrow, "api.sock"), 0o777, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	if info, err := os.Stat(narrow); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v, want the mode from before", info, err)
	}
	// A link to nowhere is not followed for ever.
	if err := os.Symlink(filepath.Join(root, "nowhere"), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), filepath.Join(root, "link", "api.sock"), 0o777, 0o755); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("by a link to nowhere: %v", err)
	}
}
