package preflight

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir says why path cannot be a directory in which this process makes files:
// it is there and is something else or not writable, or it is not there and
// cannot be made.
func Dir(path string) error {
	at := path
	for {
		info, err := os.Stat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist) && filepath.Dir(at) != at:
			at = filepath.Dir(at)
			continue
		case err != nil:
			return fmt.Errorf("%w; choose a directory this user can write", err)
		case !info.IsDir():
			return fmt.Errorf("%w; choose another path", &fs.PathError{Op: "mkdir", Path: at, Err: syscall.ENOTDIR})
		}
		if err := unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			return fmt.Errorf("%s must be writable by uid %d: %w; change its owner, or choose another path", at, os.Geteuid(), err)
		}
		return nil
	}
}

// Parent says why no file can be made at path: its directory is not there, or
// cannot be written. made is a directory that is made when it is not there, and
// those above it.
func Parent(path, made string) error {
	dir := filepath.Dir(path)
	_, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && within(made, dir):
		return nil
	case err != nil:
		return fmt.Errorf("%w; make this directory, or choose another path", err)
	}
	return Dir(dir)
}

// within says whether path is dir, or below it.
func within(path, dir string) bool {
	var err error
	if path, err = filepath.Abs(path); err != nil {
		return false
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// Follows says whether err is only what comes of a directory that cannot be
// used, such as of a file below it.
func Follows(err error) bool {
	return errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrPermission)
}

// LogFile says why a file cannot be appended to, or made when it is not there.
// Its directory is not made for it.
func LogFile(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(path)
		if _, err := os.Stat(dir); err != nil {
			return err
		}
		return Dir(dir)
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return nil
}
