package server

import (
	"net"
	"time"

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

// setUserTimeout ends a TCP connection when what was sent is not acknowledged
// for so long. gRPC would, for connections that it knows to be TCP's.
func setUserTimeout(conn net.Conn, timeout time.Duration) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // It is closed already.
	}
	// Without it, keepalive finds out by itself.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	})
}
