package unixsock

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// echoing answers each byte with itself on a Lasting, until the test ends.
type echoing struct {
	t       *testing.T
	l       *Lasting
	reports chan error
}

func startEcho(t *testing.T, path string) *echoing {
	t.Helper()
	l, err := ListenLasting(t.Context(), path, 0o770, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	e := &echoing{t: t, l: l, reports: make(chan error, 100)}
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return l.Run(ctx, func(err error) { e.reports <- err }) })
	g.Go(func() error {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			g.Go(func() error {
				_, err := io.Copy(c, c)
				return errors.Join(err, c.Close())
			})
		}
	})
	t.Cleanup(func() {
		stop()
		if err := errors.Join(l.Close(), g.Wait()); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *echoing) dial() net.Conn {
	e.t.Helper()
	c, err := new(net.Dialer).DialContext(e.t.Context(), "unix", e.l.path)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (e *echoing) talk(c net.Conn) {
	e.t.Helper()
	if _, err := c.Write([]byte{7}); err != nil {
		e.t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		e.t.Fatal(err)
	}
}

// mended waits for the socket to be there again.
func (e *echoing) mended() {
	e.t.Helper()
	select {
	case err := <-e.reports:
		if err != nil {
			e.t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		e.t.Fatalf("the socket was not made again: %v", e.l.Check())
	}
	if err := e.l.Check(); err != nil {
		e.t.Error(err)
	}
}

func TestLastingMakesTheSocketAgain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		remove func(path string) error
	}{
		{"socket removed", os.Remove},
		{"socket renamed", func(path string) error { return os.Rename(path, path+".old") }},
		{"directory removed", func(path string) error { return os.RemoveAll(filepath.Dir(path)) }},
		{"directory renamed", func(path string) error { return os.Rename(filepath.Dir(path), filepath.Dir(path)+".old") }},
		{"all above it removed", func(path string) error { return os.RemoveAll(filepath.Dir(filepath.Dir(path))) }},
		{"replaced by a dead socket", func(path string) error {
			dead := path + ".dead"
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return errors.Join(l.Close(), os.Rename(dead, path))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e := startEcho(t, filepath.Join(t.TempDir(), "a", "b", "api.sock"))
			open := e.dial()
			e.talk(open)
			for range 2 { // The second time it is the new directory that is watched.
				if err := test.remove(e.l.path); err != nil {
					t.Fatal(err)
				}
				e.mended()
				e.talk(e.dial())
				if test.name == "directory renamed" {
					if err := os.RemoveAll(filepath.Dir(e.l.path) + ".old"); err != nil {
						t.Fatal(err)
					}
				}
			}
			e.talk(open) // was never cut
			if info, err := os.Stat(e.l.path); err != nil || info.Mode().Perm() != 0o770 {
				t.Errorf("the new socket is %v, %v", info, err)
			}
		})
	}
}

// TestLastingLeavesOthersAlone: a path that another process has taken is its
// own, until it is gone.
func TestLastingLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	e := startEcho(t, filepath.Join(t.TempDir(), "api.sock"))
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.l.path + ".other", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	other.SetUnlinkOnClose(false)
	if err := os.Rename(e.l.path+".other", e.l.path); err != nil {
		t.Fatal(err)
	}
	if err := <-e.reports; !errors.Is(err, ErrInUse) {
		t.Fatalf("reported %v, want ErrInUse", err)
	}
	if err := e.l.Check(); err == nil {
		t.Error("Check finds nothing wrong with another's socket")
	}
	if err := errors.Join(other.Close(), os.Remove(e.l.path)); err != nil {
		t.Fatal(err)
	}
	for {
		if err := <-e.reports; err == nil {
			break // it may have tried again while the other still listened
		}
	}
	e.talk(e.dial())
}

func TestLastingCloseRemovesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := ListenLasting(t.Context(), path, 0o770, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("another's file was removed: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}
