//go:build !linux

package server

import (
	"net"
	"time"
)

// peerOf cannot tell on this system.
func peerOf(net.Conn) (uid, pid int) { return -1, -1 }

// setUserTimeout leaves it to keepalive on this system.
func setUserTimeout(net.Conn, time.Duration) {}
