package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces the file at path with data and the given permissions,
// whatever the umask. The directory must exist. Nothing of a failed write is
// left behind, but by a crash, which can leave a file named like path with
// ".tmp" and digits behind it.
func Write(path string, data []byte, perm fs.FileMode) error {
	return Create(path, perm, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// Create is Write for content that is made piece by piece: fill is given the
// new file, empty, open for reading and writing, and not yet at path.
func Create(path string, perm fs.FileMode, fill func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), remove(f.Name()))
		}
	}()
	if err := complete(f, perm, fill); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

func complete(f *os.File, perm fs.FileMode, fill func(*os.File) error) error {
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if err := fill(f); err != nil {
		return err
	}
	return f.Sync()
}

// SyncDir makes names created, renamed or removed in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
