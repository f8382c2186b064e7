// Package unixsock opens the Unix sockets a server or agent is reached by: it
// takes over a socket left behind by a process that died, and refuses to push a
// living one aside.
//
// It does not authenticate who connects (package peer does) and serves nothing.
//
// Read [Listen] first. The invariant: the socket never exists with wider
// permissions than asked for, not even for a moment.
package unixsock
