package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Lasting is a listener on a path that makes its socket again when somebody
// removes it, or the directory it is in: cleaners of temporary directories do.
// Connections that are open stay so. All methods may be called concurrently.
//
// What happens above the socket's own directory, such as a rename of its
// parent, is not told by the system; Check finds it.
type Lasting struct {
	path          string
	perm, dirPerm fs.FileMode

	mu sync.Mutex
	// guarded by mu:
	current *net.UnixListener
	file    fs.FileInfo // of current's socket
	closed  bool
}

const (
	// settle is how long whoever removes the socket has to remove its
	// directory too.
	settle     = 100 * time.Millisecond
	againFirst = time.Second
	againMax   = time.Minute
)

// ListenLasting is Listen for a socket that lasts. Run does the watching.
func ListenLasting(ctx context.Context, path string, perm, dirPerm fs.FileMode) (*Lasting, error) {
	l := &Lasting{path: filepath.Clean(path), perm: perm, dirPerm: dirPerm}
	if err := l.bind(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// Accept is net.Listener.
func (l *Lasting) Accept() (net.Conn, error) {
	for {
		inner, closed := l.inner()
		conn, err := inner.Accept()
		if err == nil || closed {
			return conn, err
		}
		if now, closed := l.inner(); now == inner || closed {
			return nil, err
		}
	}
}

// Close is net.Listener. It removes the socket, if it is still this listener's.
func (l *Lasting) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.current.SetUnlinkOnClose(l.checkLocked() == nil)
	return l.current.Close()
}

// Addr is net.Listener.
func (l *Lasting) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Check says why nobody can reach this listener by its path, or nil.
func (l *Lasting) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.checkLocked()
}

func (l *Lasting) checkLocked() error {
	info, err := os.Lstat(l.path)
	if err != nil {
		return fmt.Errorf("the socket is gone: %w", err)
	}
	if !os.SameFile(info, l.file) {
		return fmt.Errorf("the socket %s was replaced by another file", l.path)
	}
	return nil
}

// Keys of log attributes.
const (
	keyPath = "path"
	keyErr  = "err"
)

// Keep is Run that tells a log, and calls made, if it is not nil, each time the
// socket was made again. It returns nil when ctx ends, and at once when the
// directory cannot be watched: what is served goes on all the same.
func (l *Lasting) Keep(ctx context.Context, log *slog.Logger, made func(context.Context)) error {
	err := l.Run(ctx, func(err error) {
		if err != nil {
			log.ErrorContext(ctx, "a socket was removed and cannot be made again yet", keyPath, l.path, keyErr, err)
			return
		}
		log.WarnContext(ctx, "a socket was removed, and made again", keyPath, l.path)
		if made != nil {
			made(ctx)
		}
	})
	if err != nil {
		log.WarnContext(ctx, "a socket that is removed will not be made again", keyPath, l.path, keyErr, err)
	}
	return nil
}

// Run watches the socket's directory and makes the socket again until ctx
// ends; it returns nil then. What it did is told to report: nil for a socket
// that is there again, else why it could not be made. It goes on trying. An
// error of Run says that the directory cannot be watched.
func (l *Lasting) Run(ctx context.Context, report func(error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the directory of %s: %w", l.path, err)
	}
	defer w.Close() //nolint:errcheck // nothing is written to it
	wait := againFirst
	for {
		err := l.mend(ctx, w, report)
		var again <-chan time.Time
		if err != nil {
			report(err)
			again = time.After(wait)
			wait = min(wait*2, againMax)
		} else {
			wait = againFirst
		}
		if !l.await(ctx, w, again) {
			return nil
		}
		select {
		case <-time.After(settle):
		case <-ctx.Done():
			return nil
		}
	}
}

// await waits for something to look at; false when ctx has ended.
func (l *Lasting) await(ctx context.Context, w *fsnotify.Watcher, again <-chan time.Time) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-again:
			return true
		case err := <-w.Errors:
			if err != nil { // Events were lost: all is looked at.
				return true
			}
		case e := <-w.Events:
			gone := e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) || e.Has(fsnotify.Create)
			if gone && (filepath.Clean(e.Name) == l.path || filepath.Clean(e.Name) == filepath.Dir(l.path)) {
				return true
			}
		}
	}
}

// mend makes the socket again if it is gone. The directory is watched before
// the last look at it, so that nothing is missed in between.
func (l *Lasting) mend(ctx context.Context, w *fsnotify.Watcher, report func(error)) error {
	for range 3 {
		lost := l.Check() != nil
		if lost {
			if err := l.bind(ctx); err != nil {
				return err
			}
		}
		// A watch of a directory that is gone is gone too; a second one of
		// the same directory is the same.
		if err := w.Add(filepath.Dir(l.path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("watching the directory of %s: %w", l.path, err)
		}
		if l.Check() != nil {
			continue
		}
		if lost {
			report(nil)
		}
		return nil
	}
	return fmt.Errorf("the socket %s is removed as soon as it is made", l.path)
}

func (l *Lasting) inner() (*net.UnixListener, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current, l.closed
}

// bind makes a socket and has Accept turn to it.
func (l *Lasting) bind(ctx context.Context) error {
	next, err := Listen(ctx, l.path, l.perm, l.dirPerm)
	if err != nil {
		return err
	}
	file, err := os.Lstat(l.path)
	if err != nil {
		return errors.Join(fmt.Errorf("looking at the socket: %w", err), next.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return next.Close()
	}
	old := l.current
	l.current, l.file = next, file
	if old == nil {
		return nil
	}
	old.SetUnlinkOnClose(false) // The path is the new one's.
	return old.Close()
}
