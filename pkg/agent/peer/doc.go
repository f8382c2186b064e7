// Package peer says who is on the other end of a Unix socket, and has the
// kernel prove it: a pidfd that pins the process which called connect(2), the
// effective user and group the kernel noted then, and, read through a
// /proc/<pid> directory that belongs to that pidfd, the start time and the
// executable. [Process.Check] reads all of it again; the smallest difference
// ends the connection.
//
// It does not say what the process is worth (workload attestors do) and does
// not serve RPCs. It needs Linux; elsewhere it builds, and refuses everyone.
//
// Read [Credentials] first: the gRPC transport credentials of every socket on
// which the agent must know its caller. Then [FromContext] and [Process].
//
// The invariant: whatever a Process returned before a Check that succeeded was
// true of the process that connected, and of no other. A reused PID, a child
// that kept the socket, an exec of another program, of a setuid or a setgid
// one, do not pass for it (S23). What the kernel cannot tell is written in
// docs/attestors/unix.md.
package peer
