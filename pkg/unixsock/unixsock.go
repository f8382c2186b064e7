package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// maxPath is what sun_path holds on Linux, its final zero excluded; on other
// systems it is a few bytes less.
const maxPath = 107

// Sentinel errors, tested with errors.Is.
var (
	// ErrInUse is returned when a living process answers on the socket.
	ErrInUse = errors.New("another process is listening on the socket")
	// ErrNotSocket is returned when the path is taken by something that is not
	// a socket; it is left alone.
	ErrNotSocket = errors.New("path is taken by a file that is not a socket")
)

// Check says why [Listen] cannot use path, as far as that can be known without
// listening; another process may have it. Missing directories are not looked at.
func Check(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("listening on %s: the path has %d bytes, a Unix socket's has at most %d; choose a shorter one", path, len(path), maxPath)
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listening on %s: %w; choose another path or remove it", path, ErrNotSocket)
	}
	return nil
}

// Listen creates path, with missing directories of mode dirPerm, and listens
// on it with the given socket permissions. Closing the listener removes the
// socket.
func Listen(ctx context.Context, path string, perm, dirPerm fs.FileMode) (*net.UnixListener, error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	if err := makeDir(filepath.Dir(path), dirPerm); err != nil {
		return nil, fmt.Errorf("making the socket's directory: %w", err)
	}
	if err := clearStale(ctx, path); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l, err := bind(ctx, path, perm)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}

// makeDir makes dir and what is missing above it, with these permissions and not
// those that a umask leaves: whoever may open the socket has to get there. What
// is there already stays as it is.
func makeDir(dir string, perm fs.FileMode) error {
	if err := isDir(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeDir(filepath.Dir(dir), perm); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, perm); {
	case errors.Is(err, fs.ErrExist): // by somebody else, just now; or a symbolic link to nowhere
		return isDir(dir)
	case err != nil:
		return err
	}
	return os.Chmod(dir, perm)
}

func isDir(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	return err
}

// umask serialises the change of the process's umask.
var umask sync.Mutex

func bind(ctx context.Context, path string, perm fs.FileMode) (*net.UnixListener, error) {
	// bind(2) takes the permissions from the umask alone. Files that another
	// goroutine makes meanwhile come out narrower than asked, never wider.
	umask.Lock()
	old := syscall.Umask(0o077)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	syscall.Umask(old)
	umask.Unlock()
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, perm); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l.(*net.UnixListener), nil // what ListenConfig documents for "unix"
}

// clearStale removes a socket nobody answers on.
func clearStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w; choose another path or remove it", ErrNotSocket)
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("%w; stop it, or choose another path", ErrInUse), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("finding out whether the socket is in use: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
