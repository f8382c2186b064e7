//go:build linux && amd64

package bolt_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/credence-id/credence/pkg/store/storetest"
)

// recorder runs this test binary as a child under ptrace and records what it
// asks of the files in one directory, in order.
type recorder struct {
	dir string
	ops []diskOp
	// fail, if set, is asked before each operation and may refuse it.
	fail func(op diskOp) syscall.Errno

	pid     int
	pending map[int]*call // by thread
}

// call is a system call that has begun.
type call struct {
	op     *diskOp
	index  int // of the operation in ops, or -1 while it is not recorded
	refuse syscall.Errno
}

// getSyscallInfo is PTRACE_GET_SYSCALL_INFO; its answer has the form below.
const getSyscallInfo = 0x420e

type syscallInfo struct {
	op     uint8 // 1 at the beginning, 2 at the end
	_      [3]uint8
	_      uint32
	_, _   uint64
	number uint64 // or the result
	args   [6]uint64
}

func (r *recorder) run(args string) error {
	// ptrace ties the child to the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	acks, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer acks.Close()
	stderr, err := os.CreateTemp("", "stderr")
	if err != nil {
		return err
	}
	defer os.Remove(stderr.Name()) //nolint:errcheck // In the directory for temporary files.
	defer stderr.Close()
	p, err := os.StartProcess(os.Args[0], os.Args[:1], &os.ProcAttr{
		Env:   childEnviron(args),
		Files: []*os.File{nil, nil, stderr, w},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err := w.Close(); err != nil {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	r.pid, r.pending = p.Pid, make(map[int]*call)
	defer p.Release() //nolint:errcheck // It was waited for by trace.
	status, err := r.trace()
	if err != nil {
		return err
	}
	if status != 0 {
		said, _ := os.ReadFile(stderr.Name())
		return fmt.Errorf("child ended with %d: %s", status, said)
	}
	return nil
}

// trace follows the child's threads until it exits.
func (r *recorder) trace() (int, error) {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(r.pid, &ws, unix.WALL, nil); err != nil {
		return 0, fmt.Errorf("waiting for the child: %w", err)
	}
	if err := unix.PtraceSetOptions(r.pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return 0, fmt.Errorf("%w: setting options: %w", errNoTrace, err)
	}
	if err := unix.PtraceSyscall(r.pid, 0); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoTrace, err)
	}
	for {
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, fmt.Errorf("waiting for the child: %w", err)
		case tid == r.pid && ws.Exited():
			return ws.ExitStatus(), nil
		case tid == r.pid && ws.Signaled():
			return -1, nil
		case !ws.Stopped():
			continue
		}
		signal := 0
		switch sig := ws.StopSignal(); sig {
		case syscall.SIGTRAP | 0x80:
			if err := r.stop(tid); err != nil {
				return 0, err
			}
		case syscall.SIGTRAP, syscall.SIGSTOP:
			// A new thread, on either side.
		default:
			signal = int(sig)
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil && err != unix.ESRCH {
			return 0, fmt.Errorf("letting the child go on: %w", err)
		}
	}
}

// stop is called when a thread begins or ends a system call.
func (r *recorder) stop(tid int) error {
	var info syscallInfo
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); e != 0 {
		if e == unix.ESRCH {
			return nil
		}
		return fmt.Errorf("%w: reading a system call: %w", errNoTrace, e)
	}
	if info.op == 1 {
		op, err := r.decode(tid, info)
		if op == nil || err != nil {
			return err
		}
		return r.begin(tid, op)
	}
	c := r.pending[tid]
	if c == nil {
		return nil
	}
	delete(r.pending, tid)
	return r.end(tid, c, int64(info.number))
}

// begin records calls that change content; a crash may find them half done.
func (r *recorder) begin(tid int, op *diskOp) error {
	c := &call{op: op, index: -1}
	r.pending[tid] = c
	op.upTo = len(r.ops)
	if r.fail != nil {
		if c.refuse = r.fail(*op); c.refuse != 0 {
			return setRegister(tid, func(regs *unix.PtraceRegs) { regs.Orig_rax = ^uint64(0) })
		}
	}
	if op.kind == opWrite || op.kind == opTruncate || op.kind == opAck {
		c.index = len(r.ops)
		r.ops = append(r.ops, *op)
	}
	return nil
}

// end records the others, if they succeeded.
func (r *recorder) end(tid int, c *call, result int64) error {
	switch {
	case c.refuse != 0:
		return setRegister(tid, func(regs *unix.PtraceRegs) { regs.Rax = uint64(-int64(c.refuse)) })
	case result < 0 && c.index >= 0:
		return fmt.Errorf("%+v failed with %d", c.op, result)
	case c.op.kind == opWrite && result != int64(len(c.op.data)):
		return fmt.Errorf("a write of %d bytes wrote %d", len(c.op.data), result)
	case result >= 0 && c.index < 0:
		r.ops = append(r.ops, *c.op)
	}
	return nil
}

func setRegister(tid int, set func(*unix.PtraceRegs)) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return fmt.Errorf("%w: %w", errNoTrace, err)
	}
	set(&regs)
	return unix.PtraceSetRegs(tid, &regs)
}

// decode returns the operation, or nil if the call is of no interest.
func (r *recorder) decode(tid int, info syscallInfo) (op *diskOp, err error) {
	a := info.args
	switch info.number {
	case unix.SYS_WRITE:
		if a[0] != ackFD {
			return nil, nil
		}
		return r.decodeAck(tid, a)
	case unix.SYS_OPENAT:
		op = &diskOp{kind: opCreate}
		if a[2]&unix.O_CREAT == 0 {
			return nil, nil
		}
		op.path, err = r.text(tid, a[1])
	case unix.SYS_LINKAT:
		op = &diskOp{kind: opLink}
		if op.path, err = r.text(tid, a[1]); err == nil {
			op.to, err = r.text(tid, a[3])
		}
	case unix.SYS_UNLINKAT:
		op = &diskOp{kind: opUnlink}
		op.path, err = r.text(tid, a[1])
	case unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_PWRITEV, unix.SYS_FALLOCATE:
		return nil, fmt.Errorf("system call %d is not understood by the recorder", info.number)
	case unix.SYS_PWRITE64:
		op = &diskOp{kind: opWrite, path: r.file(a[0]), off: int64(a[3])}
		if r.inside(op.path) {
			op.data, err = r.memory(tid, a[1], int(a[2]))
		}
	case unix.SYS_FTRUNCATE:
		op = &diskOp{kind: opTruncate, path: r.file(a[0]), size: int64(a[1])}
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		op = &diskOp{kind: opSync, path: r.file(a[0])}
	default:
		return nil, nil
	}
	if err != nil || !r.inside(op.path) {
		return nil, err
	}
	return op, nil
}

func (r *recorder) decodeAck(tid int, a [6]uint64) (*diskOp, error) {
	line, err := r.memory(tid, a[1], int(a[2]))
	if err != nil {
		return nil, err
	}
	ack, err := storetest.ParseAck(string(line))
	return &diskOp{kind: opAck, ack: ack}, err
}

// inside says whether the path is the recorded directory or in it.
func (r *recorder) inside(path string) bool {
	return path == r.dir || filepath.Dir(path) == r.dir
}

// file is the path of an open file, under the name it was opened by.
func (r *recorder) file(fd uint64) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", r.pid, int32(fd))) // Not a file: no path.
	return strings.TrimSuffix(path, " (deleted)")
}

func (r *recorder) memory(tid int, addr uint64, n int) ([]byte, error) {
	buf := make([]byte, n)
	local := []unix.Iovec{{Base: unsafe.SliceData(buf), Len: uint64(n)}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: n}}
	got, err := unix.ProcessVMReadv(tid, local, remote, 0)
	if err != nil || got != n {
		return nil, fmt.Errorf("%w: reading %d bytes of the child: %d, %w", errNoTrace, n, got, err)
	}
	return buf, nil
}

// text reads a string that ends with a zero byte.
func (r *recorder) text(tid int, addr uint64) (string, error) {
	var all []byte
	for word := make([]byte, 8); ; addr += 8 {
		if _, err := unix.PtracePeekData(tid, uintptr(addr), word); err != nil {
			return "", fmt.Errorf("%w: reading a path of the child: %w", errNoTrace, err)
		}
		if i := bytes.IndexByte(word, 0); i >= 0 {
			return string(append(all, word[:i]...)), nil
		}
		all = binary.NativeEndian.AppendUint64(all, binary.NativeEndian.Uint64(word))
	}
}
