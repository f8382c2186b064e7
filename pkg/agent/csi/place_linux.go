package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// dir is an open directory: a name for it that nobody can lead elsewhere.
type dir struct {
	fd       int
	dev, ino uint64
	mode     uint32
	uid      uint32
	removed  bool
}

// openDir opens a directory by a path from the directory at. It is opened as a
// name only, not for reading. flags may have O_NOFOLLOW.
func openDir(at int, path string, flags int) (dir, error) {
	fd, err := unix.Openat(at, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return dir{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return dir{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return dir{fd: fd, dev: uint64(st.Dev), ino: st.Ino, mode: st.Mode, uid: st.Uid, removed: st.Nlink == 0}, nil
}

func (d dir) close() { _ = unix.Close(d.fd) }

// proc is a path of the directory for calls that take no descriptor.
func (d dir) proc() string { return "/proc/self/fd/" + strconv.Itoa(d.fd) }

// name is the directory's path as the kernel has it, without symbolic links.
func (d dir) name() (string, error) { return os.Readlink(d.proc()) }

// mountID is that of the mount the directory was reached by.
func (d dir) mountID() (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(d.fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(id))
		}
	}
	return 0, errors.New("the kernel does not say which mount a directory is in")
}

// mount is what the directory was reached by; nil when the kernel does not list
// it.
func (d dir) mount() (*mountinfo.Info, error) {
	id, err := d.mountID()
	if err != nil {
		return nil, err
	}
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.ID != id, i.ID == id })
	if err != nil || len(infos) == 0 {
		return nil, err
	}
	return infos[0], nil
}

// root is where the directory's mount begins in its file system, or nothing.
func (d dir) root() (string, error) {
	on, err := d.mount()
	if err != nil || on == nil {
		return "", err
	}
	return on.Root, nil
}

// place is a target whose parent is open: whoever changes names in its path now
// changes nothing about where that is.
type place struct {
	dir         // the parent
	path string // the target's, without symbolic links
}

// open opens a target's parent. Of its path only the directory of pods, which is
// configured, may be reached by symbolic links. The error is fs.ErrNotExist when
// an element below that is not there.
func (m *mounts) open(t target) (*place, error) {
	at, err := openDir(unix.AT_FDCWD, m.pods(), 0)
	if err != nil {
		return nil, unready("agent.csi.kubelet_dir has no directory of pods: %s; the agent has to see it as kubelet does", err) // not fs.ErrNotExist
	}
	for _, name := range t.parents() {
		next, err := openDir(at.fd, name, unix.O_NOFOLLOW)
		at.close()
		if errors.Is(err, unix.ENOTDIR) {
			return nil, invalid("target_path %q: %s in it is not a directory, and symbolic links are not followed", t.path, name)
		}
		if err != nil {
			return nil, fmt.Errorf("target_path %q: %w", t.path, err)
		}
		at = next
	}
	parent, err := at.name()
	if err != nil {
		at.close()
		return nil, err
	}
	return &place{dir: at, path: parent + "/" + targetDir}, nil
}

// leafPath is a path of the target for calls that take no descriptor.
func (p *place) leafPath() string { return p.proc() + "/" + targetDir }

// leaf opens what is at the target now: what is mounted there, if anything is.
func (p *place) leaf() (dir, error) { return openDir(p.fd, targetDir, unix.O_NOFOLLOW) }

// make makes the target, if there is nothing.
func (p *place) make() error {
	if err := unix.Mkdirat(p.fd, targetDir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making target_path: %w", &fs.PathError{Op: "mkdir", Path: p.path, Err: err})
	}
	return nil
}

// remove removes the target, which has no mount any more. What somebody else has
// put there is not removed.
func (p *place) remove() error {
	err := unix.Unlinkat(p.fd, targetDir, unix.AT_REMOVEDIR)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.ENOTDIR):
		return invalid("target_path %s is not a directory, and not of this driver; remove it", p.path)
	case errors.Is(err, unix.ENOTEMPTY):
		return unready("target_path %s has files of somebody else, which the mount had hidden; remove them", p.path)
	}
	return fmt.Errorf("removing target_path: %w", &fs.PathError{Op: "rmdir", Path: p.path, Err: err})
}

// look says how many mounts are on top of each other at the target, and what the
// mount is that these are in.
func (p *place) look() (layers int, on *mountinfo.Info, err error) {
	id, err := p.mountID()
	if err != nil {
		return 0, nil, fmt.Errorf("looking at target_path: %w", err)
	}
	above := make(map[int]int) // of the mounts at this path: parent, mount
	_, err = mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		if i.ID == id {
			on = i
		}
		if i.Mountpoint == p.path {
			above[i.Parent] = i.ID
		}
		return true, false
	})
	if err != nil {
		return 0, nil, fmt.Errorf("reading what is mounted: %w", err)
	}
	// Only what is reached from the parent: another mount may hide others that
	// have the same path.
	for next, ok := above[id]; ok && layers < len(above); next, ok = above[next] {
		layers++
	}
	return layers, on, nil
}

// shows says whether the target is the source, by whatever mount.
func (p *place) shows(src dir) bool {
	at, err := p.leaf()
	if err != nil {
		return false
	}
	defer at.close()
	return at.dev == src.dev && at.ino == src.ino
}

// has says whether the topmost mount is of the source, and as restricted as it
// has to be.
func (p *place) has(src dir) bool {
	at, err := p.leaf()
	if err != nil {
		return false
	}
	defer at.close()
	var st unix.Statfs_t
	if unix.Fstatfs(at.fd, &st) != nil {
		return false
	}
	const all = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	return at.dev == src.dev && at.ino == src.ino && int64(st.Flags)&all == all
}

// volumeFile is what kubelet writes beside a target before it has it published.
const (
	volumeFile    = "vol_data.json"
	maxVolumeFile = 64 << 10
)

// driver is whom kubelet asked for the volume; empty when that cannot be known.
func (p *place) driver() (string, error) {
	fd, err := unix.Openat(p.fd, volumeFile, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: volumeFile, Err: err}
	}
	f := os.NewFile(uintptr(fd), volumeFile)
	defer f.Close() //nolint:errcheck // nothing is written to it
	text, err := io.ReadAll(io.LimitReader(f, maxVolumeFile))
	if err != nil {
		return "", err
	}
	var data struct {
		DriverName string `json:"driverName"`
	}
	if json.Unmarshal(text, &data) != nil {
		return "", nil //nolint:nilerr // kubelet's own file, which may change
	}
	return data.DriverName, nil
}
