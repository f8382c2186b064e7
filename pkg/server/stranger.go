package server

import (
	"fmt"
	"net"
)

// strangerBytes is how much a client without a certificate may send on one
// connection. An attestation takes at most a third of it. gRPC reads a message
// whole before anyone can ask who sends it, and waits for the rest of it for as
// long as the client pleases: without a bound, one stranger's connection could
// make the server hold maxStreams messages of maxRecv bytes (S07).
const strangerBytes = 1 << 20

// strangerConn is the connection of a client without a certificate. It is used
// by gRPC's one reader.
type strangerConn struct {
	net.Conn
	left int
}

// Read ends the connection when the stranger has sent enough.
func (c *strangerConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("a client without a certificate sent more than %d bytes on one connection", strangerBytes)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}
