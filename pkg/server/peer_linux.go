package server

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerOf returns the uid and pid of the process on the other end of a Unix
// socket, as they were when it connected; -1 for what cannot be told.
func peerOf(conn net.Conn) (uid, pid int) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return -1, -1
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1, -1
	}
	uid, pid = -1, -1
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid, pid = int(cred.Uid), int(cred.Pid)
		}
	})
	if err != nil {
		return -1, -1
	}
	return uid, pid
}
