package peer

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// noPeerPidfd is set on a kernel before 6.5, which has no SO_PEERPIDFD.
var noPeerPidfd atomic.Bool

// probeSocket asks the kernel who connected.
//
// SO_PEERPIDFD pins the process that called connect(2), even if it is long
// gone. Before Linux 6.5 there is only its number: pidfd_open right after
// SO_PEERCRED, and then the user and group must agree, so that a reused PID
// passes only if it is the same user's and was reused between connect and here.
func probeSocket(c net.Conn) (*Process, error) {
	if err := procIsOurs(); err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("a %T is not a Unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking who connected: %w", err)
	}
	var (
		cred  *unix.Ucred
		pidfd = -1
	)
	if ctlErr := raw.Control(func(fd uintptr) { cred, pidfd, err = askKernel(int(fd)) }); ctlErr != nil {
		err = ctlErr
	}
	if err != nil {
		return nil, fmt.Errorf("asking who connected: %w", err)
	}
	p, err := newProcess(cred.Pid, pidfd)
	if err != nil {
		return nil, err
	}
	if p.seen.uid != cred.Uid || p.seen.gid != cred.Gid {
		p.Close()
		return nil, fmt.Errorf("process %d: %w: another user or group", cred.Pid, ErrChanged)
	}
	return p, nil
}

func askKernel(fd int) (*unix.Ucred, int, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, -1, err
	}
	if cred.Pid == 0 {
		return nil, -1, ErrPIDNamespace
	}
	if !noPeerPidfd.Load() {
		pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		switch {
		case err == nil:
			return cred, pidfd, nil
		case errors.Is(err, unix.ENOPROTOOPT):
			noPeerPidfd.Store(true)
		default:
			// ESRCH, or EINVAL on the first kernels: it was reaped already.
			return nil, -1, fmt.Errorf("process %d: %w (%w)", cred.Pid, ErrGone, err)
		}
	}
	pidfd, err := unix.PidfdOpen(int(cred.Pid), 0)
	if err != nil {
		return nil, -1, fmt.Errorf("opening pidfd of process %d: %w", cred.Pid, goneIf(err))
	}
	return cred, pidfd, nil
}
