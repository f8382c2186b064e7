package csi

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// attach mounts the source at the target, which has no mount. The mount is made
// apart and restricted before it is attached, so that there is no moment at which
// it could be written to, and a process that ends in between leaves nothing.
// Kernels before 5.12 have it made in two steps.
func (m *mounts) attach(p *place) error {
	// Opened here: what was mounted on the source may have gone with what was
	// taken away at the target.
	src, err := m.openSource()
	if err != nil {
		return err
	}
	defer src.close()
	at, err := p.leaf()
	if errors.Is(err, unix.ENOTDIR) {
		return invalid("target_path %s is there and is not a directory; remove it", p.path)
	}
	if err != nil {
		return fmt.Errorf("opening target_path: %w", err)
	}
	defer at.close()
	tree, err := -1, error(unix.ENOSYS)
	if !m.old {
		tree, err = restricted(src)
	}
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // EPERM: seccomp, which does not know the call.
		return m.attachOld(src, at, p)
	case err != nil:
		return fmt.Errorf("making the mount: %w", err)
	}
	defer unix.Close(tree) //nolint:errcheck // nothing is written to it
	if err := unix.MoveMount(tree, "", at.fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting at %s: %w", p.path, err)
	}
	return nil
}

// restricted is a mount of the source that is nowhere yet. It is apart from the
// source's mount: what is mounted on that later does not come to pods.
func restricted(src dir) (tree int, err error) {
	tree, err = unix.OpenTree(src.fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(tree)
		return -1, err
	}
	return tree, nil
}

// attachOld binds, and then restricts. What a process leaves that ends in between
// is not what has takes for right, and is replaced.
func (m *mounts) attachOld(src, at dir, p *place) error {
	if err := unix.Mount(src.proc(), at.proc(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting at %s: %w", p.path, err)
	}
	m.done(didBind)
	// The descriptor at is of the directory under the mount; the path is of the
	// mount, as long as its parent is the one that is open.
	const flags = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", p.leafPath(), "", flags, ""); err != nil {
		return errors.Join(fmt.Errorf("restricting the mount at %s: %w", p.path, err), m.detach(p))
	}
	return nil
}
