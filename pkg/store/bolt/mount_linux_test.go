package bolt_test

import "golang.org/x/sys/unix"

// mountSmall puts a file system of 4 MiB on the directory.
func mountSmall(dir string) error {
	return unix.Mount("none", dir, "tmpfs", 0, "size=4m")
}

// unmount takes it away, as soon as nobody uses it.
func unmount(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) }
