package peer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/credence-id/credence/pkg/attest/workload"
	"golang.org/x/sys/unix"
)

// Process is the process on the other end of a connection. It holds two
// descriptors until closed: the pidfd and the /proc/<pid> directory.
//
// All methods may be called concurrently, also with Close. After Close, and
// once the process is gone, every read fails with ErrGone.
type Process struct {
	pid  int32
	seen facts
	fds  descriptors

	watch *watcher // nil when nobody watches the pidfd
	onEnd func()   // closes the connection; may be nil
	once  sync.Once
	done  chan struct{}
	cause error // why it ended; read after done
}

var _ workload.Process = (*Process)(nil)

// facts is what must stay as it was.
type facts struct {
	uid, gid uint32 // effective
	start    uint64 // clock ticks since boot
	exe      exeID
}

// exeID tells executables apart. The birth time keeps an inode number that was
// freed and given to another file from passing for the first one.
type exeID struct {
	major, minor uint32
	ino          uint64
	birth        unix.StatxTimestamp
	hidden       bool // the agent lacks the right to look
}

// Open finds a process by its PID, as no connection vouches for it: the caller
// answers for the PID meaning what it should. The Process must be closed. Run
// does not watch it.
func Open(pid int32) (*Process, error) {
	if err := procIsOurs(); err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return nil, fmt.Errorf("opening pidfd of process %d: %w", pid, goneIf(err))
	}
	return newProcess(pid, pidfd)
}

// newProcess records the process that pidfd holds and takes over pidfd.
func newProcess(pid int32, pidfd int) (_ *Process, err error) {
	p := &Process{pid: pid, done: make(chan struct{})}
	p.fds.init(pidfd)
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	var path [32]byte
	dir, err := unix.Open(string(strconv.AppendInt(append(path[:0], "/proc/"...), int64(pid), 10)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /proc of process %d: %w", pid, goneIf(err))
	}
	p.fds.dir = dir
	if p.fds.stat, err = openat(dir, "stat", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC); err != nil {
		return nil, p.fail("opening stat", err)
	}
	if p.seen, err = p.look(); err != nil {
		return nil, err
	}
	return p, nil
}

// look reads the facts. The pidfd is asked last: if it is alive then, the
// directory and all that was read in it were its process's.
func (p *Process) look() (facts, error) {
	var st unix.Stat_t
	// The kernel keeps the owner of this one directory equal to the effective
	// ids of the process, dumpable or not: the cheap form of status's Uid line.
	if err := unix.Fstat(p.fds.dir, &st); err != nil {
		return facts{}, p.fail("reading the owner", err)
	}
	f := facts{uid: st.Uid, gid: st.Gid}
	var err error
	if f.start, err = p.startTime(); err != nil {
		return facts{}, err
	}
	if f.exe, err = p.exe(); err != nil {
		return facts{}, err
	}
	return f, p.alive()
}

// startTime is in clock ticks since boot. The file is held open, as the
// directory is: opening it takes longer than reading it, and every call reads it
// twice.
func (p *Process) startTime() (uint64, error) {
	var buf [1024]byte
	n, err := readBegin(p.fds.stat, buf[:])
	if err != nil {
		return 0, p.fail("reading stat", err)
	}
	start, err := parseStart(buf[:n])
	if err != nil {
		return 0, p.fail("reading stat", err)
	}
	return start, nil
}

// exe never waits for the file's server (DONT_SYNC): a workload can run from a
// FUSE mount that it serves itself.
func (p *Process) exe() (exeID, error) {
	var st unix.Statx_t
	err := unix.Statx(p.fds.dir, "exe", unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_BTIME, &st)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return exeID{hidden: true}, nil
	case err != nil:
		return exeID{}, p.fail("reading exe", err)
	}
	id := exeID{major: st.Dev_major, minor: st.Dev_minor, ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.birth = st.Btime
	}
	return id, nil
}

// alive asks the pidfd.
func (p *Process) alive() error {
	fds := [1]unix.PollFd{{Fd: int32(p.fds.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds[:], 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return p.fail("asking the pidfd", err)
		case n != 0:
			return fmt.Errorf("process %d: %w", p.pid, ErrGone)
		}
		return nil
	}
}

func (p *Process) fail(what string, err error) error {
	return fmt.Errorf("process %d: %s: %w", p.pid, what, goneIf(err))
}

// goneIf gives the kernel's several words for "no such process" one name.
func goneIf(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w (%w)", ErrGone, err)
	}
	return err
}

// Check reads again everything that was recorded when the process connected.
// It returns ErrGone or ErrChanged (wrapped), or what kept it from looking; in
// each case the connection is closed and no later Check succeeds.
func (p *Process) Check() error {
	if err := p.ended(); err != nil {
		return err
	}
	if !p.fds.acquire() {
		return p.closedError()
	}
	now, err := p.look()
	p.fds.release()
	if err == nil {
		err = p.compare(now)
	}
	if err != nil {
		p.end(err)
	}
	return err
}

func (p *Process) compare(now facts) error {
	was := p.seen
	what := ""
	switch {
	case now == was:
		return nil
	case now.start != was.start:
		what = "start time"
	case now.uid != was.uid:
		what = "effective user"
	case now.gid != was.gid:
		what = "effective group"
	default:
		what = "executable"
	}
	return fmt.Errorf("process %d: %w: another %s", p.pid, ErrChanged, what)
}

// ended returns the cause once Done is closed.
func (p *Process) ended() error {
	select {
	case <-p.done:
		return p.cause
	default:
		return nil
	}
}

// end is called with the reason, by the first who has one.
func (p *Process) end(cause error) {
	first := false
	p.once.Do(func() {
		first = true
		p.cause = cause
		close(p.done)
		if p.watch != nil {
			p.watch.remove(p)
		}
		p.fds.close()
	})
	if first && p.onEnd != nil {
		p.onEnd() // comes back through Close
	}
}

func (p *Process) closedError() error { return closedError{p.pid} }

// closedError is how every Process ends in the end, so its text is made when
// somebody reads it.
type closedError struct{ pid int32 }

// Error is the text.
func (e closedError) Error() string {
	return fmt.Sprintf("process %d: %v: its connection is closed", e.pid, ErrGone)
}

// Unwrap returns ErrGone.
func (closedError) Unwrap() error { return ErrGone }

// Done is closed when the process has exited (as soon as Run sees it), when a
// Check failed, and on Close.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close gives back the descriptors. It is called with the connection's Close.
func (p *Process) Close() { p.end(p.closedError()) }

// PID is the process's number in the agent's PID namespace.
func (p *Process) PID() int32 { return p.pid }

// UID is the effective user at connect.
func (p *Process) UID() uint32 { return p.seen.uid }

// GID is the effective group at connect.
func (p *Process) GID() uint32 { return p.seen.gid }

// Proc reads the process's /proc directory. It follows no links, as these lead
// to places the workload decides on.
func (p *Process) Proc() fs.FS { return procFS{p} }

// ReadLink reads one link, such as "exe" or "ns/pid".
func (p *Process) ReadLink(name string) (target string, err error) {
	err = p.within("readlink", name, func(dir int, base string) error {
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(dir, base, buf[:])
		if err == nil && n == len(buf) {
			err = unix.ENAMETOOLONG
		}
		target = string(buf[:max(n, 0)])
		return err
	})
	return target, err
}

// OpenExe opens the executable itself, wherever and whatever its path is. It
// can block for as long as the file's server lets it.
func (p *Process) OpenExe() (fs.File, error) {
	var f *os.File
	err := p.within("open", "exe", func(dir int, base string) error {
		fd, err := openat(dir, base, unix.O_RDONLY|unix.O_CLOEXEC)
		if err == nil {
			f = os.NewFile(uintptr(fd), "exe")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// descriptors are closed when the last user is done, not while one is in a
// system call: a number that was closed and used again would show another
// process.
type descriptors struct {
	pidfd, dir, stat int
	closed           atomic.Bool // no new users
	users            atomic.Int64
}

func (d *descriptors) init(pidfd int) {
	d.pidfd, d.dir, d.stat = pidfd, -1, -1
	d.users.Store(1)
}

func (d *descriptors) acquire() bool {
	for {
		n := d.users.Load()
		if n == 0 || d.closed.Load() {
			return false
		}
		if d.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// close ends the use that init began.
func (d *descriptors) close() {
	d.closed.Store(true)
	d.release()
}

func (d *descriptors) release() {
	if d.users.Add(-1) != 0 {
		return
	}
	_ = unix.Close(d.pidfd)
	if d.stat >= 0 {
		_ = unix.Close(d.stat)
	}
	if d.dir >= 0 {
		_ = unix.Close(d.dir)
	}
}
