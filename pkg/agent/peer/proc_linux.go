package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// maxProcFile bounds what ReadFile returns, in bytes. The longest file that an
// attestor reads is status with 65,536 groups, under 1 MiB.
const maxProcFile = 1 << 20

// procFS is /proc/<pid> of one process.
type procFS struct{ p *Process }

var _ fs.ReadFileFS = procFS{}

// Open opens a file or directory for reading. A name that is, or leads
// through, a link is refused with ELOOP.
func (f procFS) Open(name string) (fs.File, error) {
	var file *os.File
	err := f.p.within("open", name, func(dir int, base string) error {
		fd, err := openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		if err == nil {
			file = os.NewFile(uintptr(fd), name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return file, nil
}

// ReadFile is the short way for attestors: no os.File, one buffer.
func (f procFS) ReadFile(name string) (content []byte, err error) {
	err = f.p.within("read", name, func(dir int, base string) error {
		content, err = readAll(dir, base)
		return err
	})
	return content, err
}

// within calls do with the directory that holds name and name's last part,
// while the descriptors are held. The path leads through no links.
func (p *Process) within(op, name string, do func(dir int, base string) error) error {
	if !fs.ValidPath(name) {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	if !p.fds.acquire() {
		return &fs.PathError{Op: op, Path: name, Err: p.closedError()}
	}
	defer p.fds.release()
	dir := p.fds.dir
	if parent, _ := path.Split(name); parent != "" {
		sub, err := unix.Openat2(dir, parent, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil {
			return &fs.PathError{Op: op, Path: name, Err: goneIf(err)}
		}
		defer func() { _ = unix.Close(sub) }()
		dir = sub
	}
	if err := do(dir, path.Base(name)); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: goneIf(err)}
	}
	return nil
}

func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// readBegin reads the beginning of a file that the kernel makes in one piece,
// anew each time.
func readBegin(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func read(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func readAll(dir int, name string) ([]byte, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var stack [4096]byte // most files fit, and are returned in less
	buf := stack[:0]
	for {
		n, err := read(fd, buf[len(buf):cap(buf)])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return bytes.Clone(buf), nil
		}
		if buf = buf[:len(buf)+n]; len(buf) > maxProcFile {
			return nil, fmt.Errorf("file is longer than %d bytes", maxProcFile)
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
	}
}

var errStat = errors.New("malformed stat")

// parseStart finds field 22, starttime, in /proc/<pid>/stat (proc(5)). The
// second field is the program's own name in parentheses and may hold any byte,
// so fields are counted from the last parenthesis.
func parseStart(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, fmt.Errorf("%w: no command name", errStat)
	}
	rest := stat[i+1:]
	for field := 3; ; field++ {
		if len(rest) == 0 || rest[0] != ' ' {
			return 0, fmt.Errorf("%w: %d fields, at least 22 are needed", errStat, field-1)
		}
		rest = rest[1:]
		end := bytes.IndexByte(rest, ' ')
		if end < 0 {
			end = len(rest)
		}
		if field == 22 {
			start, err := strconv.ParseUint(string(rest[:end]), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%w: start time is not a number", errStat)
			}
			return start, nil
		}
		rest = rest[end:]
	}
}

// procIsOurs makes sure, once, that /proc counts PIDs as getpid(2) does and
// that its directories show effective ids: a /proc of another PID namespace
// would show some other process under the caller's number.
var procIsOurs = sync.OnceValue(func() error {
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("looking at /proc: %w; it must be mounted", err)
	}
	if self != strconv.Itoa(os.Getpid()) {
		return errors.New("/proc is of another PID namespace than the agent; mount the agent's own")
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/", &st); err != nil {
		return fmt.Errorf("looking at /proc: %w", err)
	}
	if int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		return errors.New("/proc does not show the effective user of a process")
	}
	return nil
})
